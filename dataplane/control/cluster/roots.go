// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

const (
	// ConfigMapName is that of the roots in every namespace, where proxies of pods mount them from.
	ConfigMapName = "istio-ca-root-cert"
	// RootsKey is the key in it.
	RootsKey = "root-cert.pem"
)

// failed is how long a namespace rests whose ConfigMap could not be written.
const failed = 2 * time.Second

// Roots keeps a ConfigMap with the trusted roots in every namespace. Its Write is a duty of the Writer.
type Roots struct {
	client corev1client.CoreV1Interface
	source source.Source
	log    *slog.Logger
	wake   chan struct{}
	writes atomic.Int64

	written map[string]put // by namespace; owned by Write

	mu     sync.Mutex // guards bundle
	bundle string
}

// put is a write of which the mirror has not told yet.
type put struct {
	serial int
	bundle string
}

// NewRoots keeps bundle in the namespaces that src has; it does no I/O.
func NewRoots(c *kube.Cluster, src source.Source, bundle []byte, log *slog.Logger) (*Roots, error) {
	client, err := corev1client.NewForConfig(c.Config())
	if err != nil {
		return nil, fmt.Errorf("distribute roots: %w", err)
	}
	return &Roots{client: client, source: src, log: log, wake: make(chan struct{}, 1), bundle: string(bundle)}, nil
}

// Set changes the bundle.
func (r *Roots) Set(bundle []byte) {
	r.mu.Lock()
	r.bundle = string(bundle)
	r.mu.Unlock()
	r.note()
}

// Writes counts ConfigMaps that were written.
func (r *Roots) Writes() int64 { return r.writes.Load() }

func (r *Roots) note() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Write makes what is there what should be there, until ctx ends.
func (r *Roots) Write(ctx context.Context) {
	m := newMirror(func(o any) string {
		c, ok := o.(*corev1.ConfigMap)
		if !ok {
			return ""
		}
		return c.Data[RootsKey]
	}, r.note)
	var following sync.WaitGroup
	following.Go(func() { m.run(ctx, named(r.client.RESTClient(), "configmaps", "", ConfigMapName)) })
	defer following.Wait()
	select {
	case <-r.source.Ready():
	case <-ctx.Done():
		return
	}
	r.written = map[string]put{}
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	defer retry.Stop()
	for {
		changed := r.source.Changed()
		if have, serial, ok := m.load(); ok && !r.settle(ctx, have, serial) {
			retry.Reset(failed)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-changed:
		case <-retry.C:
		}
	}
}

// settle writes what differs, and reports whether nothing failed.
func (r *Roots) settle(ctx context.Context, have map[string]string, serial map[string]int) bool {
	r.mu.Lock()
	bundle := r.bundle
	r.mu.Unlock()
	var errs []error
	for name, ns := range r.source.Load().Namespaces {
		if ctx.Err() != nil {
			return true
		}
		if now, ok := have[name]; (ok && now == bundle) || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
			continue
		}
		done := put{serial[name], bundle}
		if r.written[name] == done {
			continue
		}
		err := r.write(ctx, name, bundle)
		if err == nil || gone(err) {
			r.written[name] = done
			continue
		}
		errs = append(errs, fmt.Errorf("namespace %s: %w", name, err))
		if Unreachable(err) {
			break
		}
	}
	if len(errs) > 0 && ctx.Err() == nil {
		r.log.Warn("roots cannot be written everywhere, trying again", "configmap", ConfigMapName, "err", errors.Join(errs...))
	}
	return len(errs) == 0
}

// gone reports whether the namespace went meanwhile.
func gone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

func (r *Roots) write(ctx context.Context, namespace, bundle string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c := applycorev1.ConfigMap(ConfigMapName, namespace).WithLabels(map[string]string{"istio.io/config": "true"}).WithData(map[string]string{RootsKey: bundle})
	if _, err := r.client.ConfigMaps(namespace).Apply(ctx, c, metav1.ApplyOptions{FieldManager: Manager, Force: true}); err != nil {
		return err
	}
	r.writes.Add(1)
	return nil
}
