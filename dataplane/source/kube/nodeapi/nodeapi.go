// SPDX-License-Identifier: Apache-2.0

// Package nodeapi is what a node's agent asks and tells the API server besides reading objects, which is package kube's work:
// annotations on the node's pods, a taint of the node, whether the agent's own DaemonSet is still wanted. It writes single
// fields, so that what others write in the same objects stays theirs, and tries nothing twice: callers know when to.
// Sources: Kubernetes API reference (core/v1, apps/v1); "Update API Objects in Place Using kubectl patch".
package nodeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

// Manager is the field manager of everything that is written.
const Manager = "ambientlab-cni-agent"

// requestTimeout bounds one request, so that a server that hangs holds nobody up for longer.
const requestTimeout = 10 * time.Second

// conflicts is how often a write of a list is begun anew because somebody else changed the object.
const conflicts = 5

var (
	pods       = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	nodes      = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	daemonSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
)

// API speaks to one API server. It is safe for concurrent use.
type API struct{ client dynamic.Interface }

// New does no I/O.
func New(c *kube.Cluster) (*API, error) {
	client, err := dynamic.NewForConfig(c.Config())
	if err != nil {
		return nil, fmt.Errorf("write to the API server: %w", err)
	}
	return &API{client: client}, nil
}

// Annotate sets annotations of one incarnation of a pod, and takes away those whose value is "". It returns the version of
// the object that has them, or "" if there is no such pod, or a newer one of the same name. It needs the right to patch
// pods/status.
func (a *API) Annotate(ctx context.Context, namespace, name, uid string, annotations map[string]string) (version string, err error) {
	values := map[string]any{}
	for k, v := range annotations {
		values[k] = v
		if v == "" {
			values[k] = nil
		}
	}
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid, "annotations": values}})
	if err != nil {
		return "", fmt.Errorf("annotate pod %s/%s: %w", namespace, name, err)
	}
	resource := a.client.Resource(pods).Namespace(namespace)
	o, err := patch(ctx, resource, name, data, "status")
	switch {
	case err == nil:
		return o.GetResourceVersion(), nil
	case apierrors.IsNotFound(err):
		return "", nil
	case apierrors.IsConflict(err) || apierrors.IsInvalid(err): // a uid that does not fit is either, by the server's version
		now, readErr := get(ctx, resource, name)
		if apierrors.IsNotFound(readErr) || readErr == nil && string(now.GetUID()) != uid {
			return "", nil
		}
	}
	return "", fmt.Errorf("annotate pod %s/%s: %w", namespace, name, err)
}

// Untaint takes all taints with key from a node, and reports whether there were any. It needs the right to get and patch
// nodes.
func (a *API) Untaint(ctx context.Context, node, key string) (removed bool, err error) {
	for range conflicts {
		removed, err = a.untaint(ctx, node, key)
		if !apierrors.IsConflict(err) {
			break
		}
	}
	if err != nil {
		return false, fmt.Errorf("remove taint %s from node %s: %w", key, node, err)
	}
	return removed, nil
}

func (a *API) untaint(ctx context.Context, node, key string) (bool, error) {
	o, err := get(ctx, a.client.Resource(nodes), node)
	if err != nil {
		return false, err
	}
	taints, _, err := unstructured.NestedSlice(o.Object, "spec", "taints")
	if err != nil {
		return false, err
	}
	kept := []any{}
	for _, t := range taints {
		if m, ok := t.(map[string]any); !ok || m["key"] != key {
			kept = append(kept, t)
		}
	}
	if len(kept) == len(taints) {
		return false, nil
	}
	// The list is one value, so the patch must be of the object that it was read from.
	data, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": o.GetResourceVersion()}, "spec": map[string]any{"taints": kept},
	})
	if err != nil {
		return false, err
	}
	_, err = patch(ctx, a.client.Resource(nodes), node, data)
	return err == nil, err
}

// ErrRefused says that the server does not let the agent ask: its account, or the account's rights, are gone or never were.
var ErrRefused = errors.New("the API server refuses to say")

// Wanted reports whether a DaemonSet is there to stay: it exists, and neither it nor its namespace is being deleted. It needs
// the right to get both; without it the error is ErrRefused.
func (a *API) Wanted(ctx context.Context, namespace, daemonSet string) (bool, error) {
	ns, err := get(ctx, a.client.Resource(namespaces), namespace)
	if err == nil && ns.GetDeletionTimestamp() == nil {
		var d *unstructured.Unstructured
		if d, err = get(ctx, a.client.Resource(daemonSets).Namespace(namespace), daemonSet); err == nil {
			return d.GetDeletionTimestamp() == nil, nil
		}
	}
	switch {
	case err == nil || apierrors.IsNotFound(err):
		return false, nil
	case apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err):
		return false, fmt.Errorf("look for DaemonSet %s/%s: %w: %w", namespace, daemonSet, ErrRefused, err)
	default:
		return false, fmt.Errorf("look for DaemonSet %s/%s: %w", namespace, daemonSet, err)
	}
}

func get(ctx context.Context, r dynamic.ResourceInterface, name string) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return r.Get(ctx, name, metav1.GetOptions{})
}

func patch(ctx context.Context, r dynamic.ResourceInterface, name string, data []byte, sub ...string) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return r.Patch(ctx, name, types.MergePatchType, data, metav1.PatchOptions{FieldManager: Manager}, sub...)
}
