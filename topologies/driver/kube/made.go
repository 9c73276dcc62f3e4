// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// annotationMade on what a lab makes when it comes up is a digest of what it was made from.
const annotationMade = prefixOwn + "made"

// stock are a lab's objects that are there when it comes up, by what messages call them.
type stock map[string]*unstructured.Unstructured

// takeStock lists what a parked lab has left to this one.
func (s *stand) takeStock(ctx context.Context) (stock, error) {
	_, all, err := s.belongings(ctx, s.name)
	if err != nil {
		return nil, err
	}
	have := stock{}
	for _, o := range all {
		if have[o.what] = o.object; o.kind.Group == "" && o.kind.Kind == "Namespace" {
			s.ownNamespace(o.name, true)
		}
	}
	return have, nil
}

// has reports whether to apply a document would change nothing: nothing else was applied to its object since, and what it sets is
// as it sets it. Fields of others are not looked at, as they are not when it is applied.
func (h stock) has(u *unstructured.Unstructured) bool {
	now := h[name(u)]
	return now != nil && now.GetDeletionTimestamp() == nil && contains(now.Object, u.Object)
}

// contains reports whether have is want, or has more fields. A field of want that is null, or an empty map or list, may be left out; one
// that the API server writes in another way, or leaves out as its default, is missing, so that its object is applied again.
func contains(have, want any) bool {
	switch want := want.(type) {
	case nil:
		return have == nil
	case map[string]any:
		have, _ := have.(map[string]any)
		for k, v := range want {
			if !contains(have[k], v) {
				return false
			}
		}
		return true
	case []any:
		have, _ := have.([]any)
		if len(have) != len(want) {
			return false
		}
		for i, v := range want {
			if !contains(have[i], v) {
				return false
			}
		}
		return true
	default:
		return have == want
	}
}

// sign notes in a document what it is made of.
func sign(u *unstructured.Unstructured) error {
	made, err := digest(u.Object)
	if err != nil {
		return err
	}
	annotations := maps.Clone(u.GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[annotationMade] = made
	u.SetAnnotations(annotations)
	return nil
}

// supply applies an object of a topology unless it is in stock.
func (s *stand) supply(ctx context.Context, have stock, o runtime.Object) error {
	if p, is := o.(*corev1.Pod); is {
		return s.supplyPod(ctx, p)
	}
	u, err := s.documentOf(o)
	if err == nil {
		err = sign(u)
	}
	if err != nil || have.has(u) {
		return err
	}
	return s.applyDocument(ctx, u)
}

func (s *stand) supplyPod(ctx context.Context, p *corev1.Pod) error {
	p, err := s.fitted(p)
	if err != nil {
		return err
	}
	now := s.pods.get(refOf(p))
	if !intact(now, p.Annotations[annotationMade]) || !includes(now.Labels, p.Labels) || !includes(now.Annotations, p.Annotations) {
		return s.storePod(ctx, p)
	}
	s.remember(now.UID, p)
	return nil
}

func includes(have, want map[string]string) bool {
	for k, v := range want {
		if now, has := have[k]; !has || now != v {
			return false
		}
	}
	return true
}
