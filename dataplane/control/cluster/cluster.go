// SPDX-License-Identifier: Apache-2.0

// Package cluster is what a control plane does with the API server besides reading objects, which is source/kube's work: it
// keeps the authority's files in a Secret that all replicas share, has bearer tokens reviewed, and, in one replica that holds
// a Lease, writes conditions into statuses and the roots into every namespace. What the mesh needs to go on (discovery,
// certificates for known tokens) asks the API server nothing.
// Sources: Kubernetes API reference (authentication/v1, coordination/v1), "Server-Side Apply"; Istio's names for the Secret,
// the ConfigMap and the token's audience.
package cluster

import (
	"context"
	"errors"
	"net"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Manager is the field manager of everything that is written: what others have set in the same objects stays theirs.
const Manager = "ambientlab-control"

// requestTimeout bounds one request, so that a server that hangs holds nobody up for longer.
const requestTimeout = 10 * time.Second

// Unreachable reports whether err says that the API server cannot be asked now, and may be later.
func Unreachable(err error) bool {
	var network net.Error
	var op *net.OpError
	return errors.As(err, &op) || errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) ||
		apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err) || apierrors.IsUnexpectedServerError(err)
}

// named lists and watches the core objects of one name, in one namespace or in all.
func named(client rest.Interface, resource, namespace, name string) cache.ListerWatcher {
	get := func(o *metav1.ListOptions) *rest.Request {
		o.FieldSelector = "metadata.name=" + name
		return client.Get().NamespaceIfScoped(namespace, namespace != "").Resource(resource).SpecificallyVersionedParams(o, metav1.ParameterCodec, metav1.Unversioned)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return get(&o).Do(ctx).Get() },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return get(&o).Watch(ctx)
		},
	}
}

// retries are those of a watch.
func retries() *wait.Backoff {
	return &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 5 * time.Second}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
