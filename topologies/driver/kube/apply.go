// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// manager is whom the API server knows as the owner of what a lab sets.
const manager = "ambientlab"

// LabelLab is on everything that a lab made, with the lab's name: Down removes what has it.
// LabelGuest is on what was there before and only got fields of the lab's: Down removes those.
const (
	LabelLab   = "ambientlab.dev/lab"
	LabelGuest = "ambientlab.dev/guest"
)

// retryApply is how long a refusal is held against what another controller has still to do, such as a namespace's default
// service account.
const retryApply = 10 * time.Second

// Apply implements lab.Driver.
func (d *Driver) Apply(ctx context.Context, objs ...runtime.Object) error {
	s, err := d.standing()
	if err != nil {
		return err
	}
	return s.applyAll(ctx, objs)
}

func (s *stand) applyAll(ctx context.Context, objs []runtime.Object) error {
	return inOrder(ctx, objs, s.apply)
}

// inOrder does something with objects one after the other, but for neighbours of one kind, which do not depend on each other.
func inOrder(ctx context.Context, objs []runtime.Object, do func(context.Context, runtime.Object) error) error {
	for len(objs) > 0 {
		n := alike(objs)
		g, each := errgroup.WithContext(ctx)
		g.SetLimit(atOnce)
		for _, o := range objs[:n] {
			g.Go(func() error { return do(each, o) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		objs = objs[n:]
	}
	return nil
}

// alike is how many objects from the first on are of its kind.
func alike(objs []runtime.Object) int {
	first, err := kindOf(objs[0])
	for n, o := range objs[1:] {
		if kind, other := kindOf(o); err != nil || other != nil || kind != first {
			return n + 1
		}
	}
	return len(objs)
}

func (s *stand) apply(ctx context.Context, o runtime.Object) error {
	switch t := o.(type) {
	case *corev1.Pod:
		return s.applyPod(ctx, t)
	case *corev1.Node:
		return s.applyNode(ctx, t)
	}
	u, err := s.documentOf(o)
	if err != nil {
		return err
	}
	return s.applyDocument(ctx, u)
}

// documentOf is an object as this cluster gets it.
func (s *stand) documentOf(o runtime.Object) (*unstructured.Unstructured, error) {
	if svc, is := o.(*corev1.Service); is {
		o = s.fitService(svc)
	} else {
		o = s.fitTemplate(o)
	}
	u, err := document(o)
	if err != nil {
		return nil, fmt.Errorf("apply: %w", err)
	}
	return u, nil
}

func (s *stand) applyDocument(ctx context.Context, u *unstructured.Unstructured) error {
	if err := s.store(ctx, u, false); err != nil {
		return fmt.Errorf("apply %s: %w", name(u), err)
	}
	return nil
}

// store applies a document and marks it. With keep, what somebody else made stays as it is.
func (s *stand) store(ctx context.Context, u *unstructured.Unstructured, keep bool) error {
	r, err := s.api.resource(u.GroupVersionKind(), u.GetNamespace())
	if err != nil {
		return err
	}
	s.note(u.GroupVersionKind())
	mark := LabelLab
	if keep || !s.ownFor(u) {
		old, err := r.Get(ctx, u.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return err
		case u.GetKind() == "Namespace" && old.GetDeletionTimestamp() != nil: // nothing can be made in it
			if err := awaitEnd(ctx, r, old); err != nil {
				return err
			}
		case old.GetLabels()[LabelLab] != s.name && keep:
			return nil
		case old.GetLabels()[LabelLab] != s.name:
			mark = LabelGuest
		}
	}
	if u.GetKind() == "Namespace" {
		s.ownNamespace(u.GetName(), mark == LabelLab)
	}
	labels := u.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[mark] = s.name
	u.SetLabels(labels)
	_, err = r.Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: manager, Force: true})
	return err
}

// awaitEnd waits until an object that is about to go has gone.
func awaitEnd(ctx context.Context, r dynamic.ResourceInterface, old *unstructured.Unstructured) error {
	return poll(ctx, func() (string, bool) {
		now, err := r.Get(ctx, old.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) || err == nil && now.GetUID() != old.GetUID():
			return "", true
		case err != nil:
			return err.Error(), false
		}
		return name(old) + " does not go", false
	})
}

// ownFor reports whether an object can be the lab's alone, since its namespace is: of the core group controllers put some there too.
func (s *stand) ownFor(u *unstructured.Unstructured) bool {
	if u.GroupVersionKind().Group == "" {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namespaces[u.GetNamespace()]
}

func (s *stand) ownNamespace(name string, own bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.namespaces[name] = own
}

// applyPod starts a pod, or gives one that runs other labels and annotations.
func (s *stand) applyPod(ctx context.Context, p *corev1.Pod) error {
	p, err := s.fitted(p)
	if err != nil {
		return err
	}
	return s.storePod(ctx, p)
}

// fitted is a pod as this cluster gets it, and signed.
func (s *stand) fitted(p *corev1.Pod) (*corev1.Pod, error) {
	p = s.fit(p)
	made, err := podDigest(p, s.podNetwork)
	if err != nil {
		return nil, fmt.Errorf("apply pod %s: %w", refOf(p), err)
	}
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[annotationMade] = made
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[LabelLab] = s.name
	return p, nil
}

// storePod applies a fitted pod.
func (s *stand) storePod(ctx context.Context, p *corev1.Pod) error {
	ref := refOf(p)
	u, err := document(p)
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	r, err := s.api.resource(u.GroupVersionKind(), p.Namespace)
	if err != nil {
		return fmt.Errorf("apply pod %s: %w", ref, err)
	}
	s.note(u.GroupVersionKind())
	stored, err := r.Create(ctx, u, metav1.CreateOptions{FieldManager: manager})
	for end := time.Now().Add(retryApply); apierrors.IsForbidden(err) && time.Now().Before(end); { // no service account yet
		select {
		case <-ctx.Done():
			return fmt.Errorf("apply pod %s: %w", ref, errors.Join(err, ctx.Err()))
		case <-time.After(pollEvery):
		}
		stored, err = r.Create(ctx, u, metav1.CreateOptions{FieldManager: manager})
	}
	if apierrors.IsAlreadyExists(err) {
		stored, err = s.changePod(ctx, p)
	}
	if err != nil {
		return fmt.Errorf("apply pod %s: %w", ref, err)
	}
	s.remember(stored.GetUID(), p)
	return s.pods.await(ctx, func() (string, bool) {
		seen := s.pods.get(ref)
		return fmt.Sprintf("apply pod %s: the API server does not tell of it", ref), seen == nil || seen.UID != stored.GetUID() || newer(seen.ResourceVersion, stored.GetResourceVersion())
	})
}

// changePod gives a pod the labels and annotations of p, and takes away those that an earlier Apply gave it.
func (s *stand) changePod(ctx context.Context, p *corev1.Pod) (*unstructured.Unstructured, error) {
	r, err := s.api.resource(corev1.SchemeGroupVersion.WithKind("Pod"), p.Namespace)
	if err != nil {
		return nil, err
	}
	old, err := r.Get(ctx, p.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if old.GetDeletionTimestamp() != nil {
		return nil, errors.New("one of that name is about to end")
	}
	s.mu.Lock()
	given := s.given[old.GetUID()]
	s.mu.Unlock()
	p.Annotations[annotationMade] = changed(old.GetAnnotations()[annotationMade], p.Annotations[annotationMade])
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels": change(given.labels, p.Labels), "annotations": change(given.annotations, p.Annotations),
	}})
	if err != nil {
		return nil, err
	}
	return r.Patch(ctx, p.Name, types.MergePatchType, data, metav1.PatchOptions{FieldManager: manager})
}

// change is a merge patch from what was given before to what is wanted.
func change(given []string, want map[string]string) map[string]any {
	patch := map[string]any{}
	for _, k := range given {
		patch[k] = nil
	}
	for k, v := range want {
		patch[k] = v
	}
	return patch
}

// given are the names of the labels and annotations that Apply gave a pod.
type given struct{ labels, annotations []string }

func (s *stand) remember(uid types.UID, p *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.given[uid] = given{slices.Collect(maps.Keys(p.Labels)), slices.Collect(maps.Keys(p.Annotations))}
}

// applyNode changes the labels of a node; the rest of it is not a lab's.
func (s *stand) applyNode(ctx context.Context, n *corev1.Node) error {
	real, err := s.nodes.find(n.Name)
	if err != nil {
		return fmt.Errorf("apply node %s: %w", n.Name, err)
	}
	if err := s.api.label(ctx, real, topologyLabels(n)); err != nil || len(n.Spec.Taints) == 0 {
		return err
	}
	return s.api.taint(ctx, real, n.Spec.Taints)
}

// Delete implements lab.Driver.
func (d *Driver) Delete(ctx context.Context, objs ...runtime.Object) error {
	s, err := d.standing()
	if err != nil {
		return err
	}
	return inOrder(ctx, objs, func(ctx context.Context, o runtime.Object) error {
		u, err := document(o)
		if err != nil {
			return fmt.Errorf("delete: %w", err)
		}
		if err := s.remove(ctx, u); err != nil {
			return fmt.Errorf("delete %s: %w", name(u), err)
		}
		return nil
	})
}

// remove deletes an object. Of a pod it waits for the end: kubelet takes a pod away once its network is.
func (s *stand) remove(ctx context.Context, u *unstructured.Unstructured) error {
	r, err := s.api.resource(u.GroupVersionKind(), u.GetNamespace())
	if err != nil {
		return unlessGone(err)
	}
	old, err := r.Get(ctx, u.GetName(), metav1.GetOptions{})
	if err != nil {
		return unlessGone(err)
	}
	if u.GetKind() == "Namespace" {
		s.ownNamespace(u.GetName(), false)
	}
	uid, how := old.GetUID(), metav1.DeletePropagationBackground // as kubectl: by itself the API server leaves a Job's pods
	err = r.Delete(ctx, u.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &how})
	if err != nil {
		return unlessGone(err)
	}
	if u.GetKind() != "Pod" {
		return nil
	}
	ref := lab.PodRef{Namespace: u.GetNamespace(), Name: u.GetName()}
	return s.pods.await(ctx, func() (string, bool) {
		seen := s.pods.get(ref)
		return fmt.Sprintf("its node's kubelet has not ended it: %s", s.pods.problem(seen)), seen == nil || seen.UID != uid
	})
}

// Get implements lab.Driver.
func (d *Driver) Get(ctx context.Context, obj runtime.Object) error {
	s, err := d.standing()
	if err != nil {
		return err
	}
	u, err := document(obj)
	if err != nil {
		return fmt.Errorf("get: %w", err)
	}
	if u.GetKind() == "Node" {
		u.SetName(s.nodes.cluster(u.GetName()))
	}
	r, err := s.api.resource(u.GroupVersionKind(), u.GetNamespace())
	var found *unstructured.Unstructured
	if err == nil {
		found, err = r.Get(ctx, u.GetName(), metav1.GetOptions{})
	}
	if err != nil {
		if unlessGone(err) == nil {
			err = lab.ErrNotFound
		}
		return fmt.Errorf("get %s: %w", name(u), err)
	}
	s.speak(found)
	data, err := found.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(data, obj)
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", name(u), err)
	}
	return nil
}

// speak puts the topology's names of nodes in the place of the cluster's.
func (s *stand) speak(u *unstructured.Unstructured) {
	switch u.GetKind() {
	case "Node":
		u.SetName(s.nodes.topology(u.GetName()))
	case "Pod":
		if node, _, _ := unstructured.NestedString(u.Object, "spec", "nodeName"); node != "" {
			_ = unstructured.SetNestedField(u.Object, s.nodes.topology(node), "spec", "nodeName")
		}
	}
}
