// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
)

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

// found is one object of a lab.
type found struct {
	served
	at     dynamic.ResourceInterface
	name   string
	what   string
	object *unstructured.Unstructured
}

// find lists objects by a label. Nodes are left out: they have labels of the lab's, and are the cluster's.
func (c *client) find(ctx context.Context, kinds []served, label string) ([]*found, error) {
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	by := make([][]*found, len(kinds))
	for i, k := range kinds {
		if k.kind.Group == "" && k.kind.Kind == "Node" {
			continue
		}
		g.Go(func() error {
			r := c.dyn.Resource(k.resource)
			list, err := r.List(each, metav1.ListOptions{LabelSelector: label})
			if err != nil {
				if unlessGone(err) == nil || apierrors.IsMethodNotSupported(err) {
					return nil
				}
				return fmt.Errorf("list %s: %w", k.resource.Resource, err)
			}
			for j := range list.Items {
				o := &list.Items[j]
				f := &found{served: k, at: r, name: o.GetName(), what: name(o), object: o}
				if o.GetNamespace() != "" {
					f.at = r.Namespace(o.GetNamespace())
				}
				by[i] = append(by[i], f)
			}
			return nil
		})
	}
	err := g.Wait()
	return slices.Concat(by...), err
}

// kindSet are kinds of objects.
type kindSet map[schema.GroupVersionKind]bool

// String lists them as parseKinds reads them.
func (k kindSet) String() string {
	var list []string
	for kind := range k {
		list = append(list, kind.Kind+"."+kind.Version+"."+kind.Group)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func parseKinds(text string) kindSet {
	k := kindSet{}
	for _, f := range strings.Fields(text) {
		if kind, _ := schema.ParseKindArg(f); kind != nil {
			k[*kind] = true
		}
	}
	return k
}

// note has the lab know that it has objects of a kind.
func (s *stand) note(kind schema.GroupVersionKind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kinds[kind] = true
	if kind == corev1.SchemeGroupVersion.WithKind("Service") { // their controller gives these the labels of theirs, and no owner
		s.kinds[corev1.SchemeGroupVersion.WithKind("Endpoints")] = true
	}
}

// known are the kinds of what the lab has applied or taken over.
func (s *stand) known() kindSet {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.kinds)
}

// belongings are what has a lab's label, of the kinds that this one knows, and those kinds. To ask for all kinds that there are
// takes an API server longer than all the rest of taking a mesh over.
func (s *stand) belongings(ctx context.Context, of string) (kinds []served, all []*found, err error) {
	for kind := range s.known() {
		switch k, err := s.api.serves(kind); {
		case err == nil:
			kinds = append(kinds, k)
		case unlessGone(err) != nil:
			return nil, nil, err
		}
	}
	all, err = s.api.find(ctx, kinds, LabelLab+"="+of)
	return kinds, all, err
}
