// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
)

// downWithin bounds what is removed after an error.
const downWithin = 2 * time.Minute

// rootsConfigMap is what the control plane puts into every namespace.
const rootsConfigMap = "istio-ca-root-cert"

// Down implements lab.Driver.
func (d *Driver) Down(ctx context.Context) error {
	d.mu.Lock()
	s := d.stand
	d.mu.Unlock()
	if s == nil {
		return nil
	}
	if err := s.down(ctx); err != nil {
		return fmt.Errorf("take down lab %s: %w", s.name, err)
	}
	d.mu.Lock()
	d.stand = nil
	d.mu.Unlock()
	return nil
}

// down removes workloads while the mesh still stands, since a node's agent has a part in the end of a pod; then the mesh, and
// last what belongs to the cluster as a whole.
func (s *stand) down(ctx context.Context) error {
	s.say("taking the lab down")
	errs := []error{s.restoreAll(ctx)}
	s.forwards.close()
	errs = append(errs, s.sweep(ctx))
	s.logs.close()
	if s.pods != nil {
		s.pods.close()
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.say("the lab is down")
	return os.RemoveAll(s.dir)
}

// sweep deletes what has the lab's label.
func (s *stand) sweep(ctx context.Context) error {
	kinds, err := s.api.kinds()
	if err != nil {
		return err
	}
	mine := metav1.ListOptions{LabelSelector: LabelLab + "=" + s.name}
	for _, step := range []func(k served) bool{
		func(k served) bool { return k.kind.Kind == "Pod" && k.kind.Group == "" },
		func(k served) bool { return k.kind.Kind == "DaemonSet" },
		func(k served) bool { return k.namespaced || k.kind.Kind == "Namespace" },
		func(k served) bool { return k.kind.GroupKind() != kindCRD.GroupKind() },
		func(served) bool { return true },
	} {
		var gone []found
		for _, k := range kinds {
			if !step(k) || k.kind.Kind == "Node" && k.kind.Group == "" {
				continue
			}
			more, err := s.api.deleteAll(ctx, k, mine)
			if err != nil {
				return err
			}
			gone = append(gone, more...)
		}
		if err := s.awaitGone(ctx, gone); err != nil {
			return err
		}
	}
	return errors.Join(s.leaveGuests(ctx, kinds), s.removeRoots(ctx), s.api.unlabel(ctx))
}

// served is a kind of object that can be listed and deleted.
type served struct {
	kind       schema.GroupVersionKind
	resource   schema.GroupVersionResource
	namespaced bool
}

// kinds are those that the API server has. A group whose own server is away does not hide the others.
func (c *client) kinds() ([]served, error) {
	c.disco.Invalidate()
	lists, err := discovery.ServerPreferredResources(c.disco)
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, fmt.Errorf("ask which kinds there are: %w", err)
	}
	var out []served
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range l.APIResources {
			if slices.Contains(r.Verbs, "list") && slices.Contains(r.Verbs, "delete") {
				out = append(out, served{gv.WithKind(r.Kind), gv.WithResource(r.Name), r.Namespaced})
			}
		}
	}
	return out, nil
}

// found is one object that is about to go.
type found struct {
	at   dynamic.ResourceInterface
	name string
	what string
}

// deleteAll asks for the end of every object of a kind that is selected, and does not wait.
func (c *client) deleteAll(ctx context.Context, k served, which metav1.ListOptions) ([]found, error) {
	r := c.dyn.Resource(k.resource)
	list, err := r.List(ctx, which)
	if unlessGone(err) != nil && !apierrors.IsMethodNotSupported(err) {
		return nil, fmt.Errorf("list %s: %w", k.resource.Resource, err)
	}
	if err != nil {
		return nil, nil
	}
	var out []found
	background := metav1.DeletePropagationBackground
	for i := range list.Items {
		o := &list.Items[i]
		f := found{at: r, name: o.GetName(), what: name(o)}
		if o.GetNamespace() != "" {
			f.at = r.Namespace(o.GetNamespace())
		}
		if err := f.at.Delete(ctx, f.name, metav1.DeleteOptions{PropagationPolicy: &background}); unlessGone(err) != nil {
			return nil, fmt.Errorf("delete %s: %w", f.what, err)
		}
		out = append(out, f)
	}
	return out, nil
}

// awaitGone waits until objects, and the pods of DaemonSets, are gone.
func (s *stand) awaitGone(ctx context.Context, list []found) error {
	for _, f := range list {
		err := poll(ctx, func() (string, bool) {
			_, err := f.at.Get(ctx, f.name, metav1.GetOptions{})
			return f.what + " does not go", apierrors.IsNotFound(err)
		})
		if err != nil {
			return err
		}
	}
	if s.pods == nil {
		return nil
	}
	return s.pods.await(ctx, func() (string, bool) {
		for _, f := range list {
			for _, p := range s.pods.list(func(p *corev1.Pod) bool { return p.Namespace == systemNamespace }) {
				if owner := metav1.GetControllerOf(p); owner != nil && owner.Kind+" "+systemNamespace+"/"+owner.Name == f.what {
					return fmt.Sprintf("pod %s does not go", refOf(p)), false
				}
			}
		}
		return "", true
	})
}

// leaveGuests takes the lab's fields out of what was there before it.
func (s *stand) leaveGuests(ctx context.Context, kinds []served) error {
	var errs []error
	for _, k := range kinds {
		list, err := s.api.dyn.Resource(k.resource).List(ctx, metav1.ListOptions{LabelSelector: LabelGuest + "=" + s.name})
		if err != nil {
			continue // what cannot be listed has no label of ours
		}
		for i := range list.Items {
			o := &list.Items[i]
			bare := &unstructured.Unstructured{}
			bare.SetGroupVersionKind(k.kind)
			bare.SetName(o.GetName())
			bare.SetNamespace(o.GetNamespace())
			r, err := s.api.resource(k.kind, o.GetNamespace())
			if err == nil {
				_, err = r.Apply(ctx, o.GetName(), bare, metav1.ApplyOptions{FieldManager: manager, Force: true})
			}
			if unlessGone(err) != nil {
				errs = append(errs, fmt.Errorf("restore %s: %w", name(o), err))
			}
		}
	}
	return errors.Join(errs...)
}

// removeRoots deletes what the control plane has put into the cluster's own namespaces.
func (s *stand) removeRoots(ctx context.Context) error {
	var list corev1.NamespaceList
	if err := s.api.res.List(ctx, &list); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	var errs []error
	for _, ns := range list.Items {
		err := s.api.res.Delete(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: rootsConfigMap}})
		errs = append(errs, unlessGone(err))
	}
	return errors.Join(errs...)
}
