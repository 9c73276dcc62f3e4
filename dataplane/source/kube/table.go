// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// table is what a reflector writes one kind to. It keeps no objects, only which ones there are: they live in the source's
// snapshot alone. The reflector calls it from one goroutine.
type table struct {
	source *Source
	kind   source.Kind
	known  map[source.Key]version
}

// version tells whether an object is the one that was read before.
type version struct {
	uid      types.UID
	resource string
}

var _ cache.TransformingStore = (*table)(nil)

func newTable(s *Source, kind source.Kind) *table {
	return &table{source: s, kind: kind, known: map[source.Key]version{}}
}

func (t *table) len() int { return len(t.known) }

func (t *table) key(o metav1.Object) source.Key {
	return source.Key{Kind: t.kind.Name, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// Transformer implements cache.TransformingStore: a first list is not held twice in full.
func (t *table) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { strip(o); return o, nil }
}

// Add implements cache.ReflectorStore.
func (t *table) Add(o any) error { return t.Update(o) }

// Update implements cache.ReflectorStore.
func (t *table) Update(o any) error {
	defer t.source.note()
	return t.put(o)
}

// Delete implements cache.ReflectorStore.
func (t *table) Delete(o any) error {
	m, ok := o.(metav1.Object)
	if !ok {
		return fmt.Errorf("delete %s: a %T is no object", t.kind.Name, o)
	}
	t.remove(t.key(m))
	t.source.note()
	return nil
}

// Replace implements cache.ReflectorStore: list is all that there is.
func (t *table) Replace(list []any, _ string) error { return t.replace(list) }

// Resync implements cache.ReflectorStore.
func (t *table) Resync() error { return nil }

func (t *table) replace(list []any) error {
	gone := make(map[source.Key]bool, len(t.known))
	for key := range t.known {
		gone[key] = true
	}
	var errs []error
	for i, o := range list {
		list[i] = nil // the list may be long: what is decoded need not live on
		if m, ok := o.(metav1.Object); ok {
			delete(gone, t.key(m))
		}
		errs = append(errs, t.put(o))
	}
	for key := range gone {
		t.remove(key)
	}
	t.source.read(t.kind.Name)
	return errors.Join(errs...)
}

func (t *table) put(o any) error {
	m, ok := o.(metav1.Object)
	if !ok {
		return fmt.Errorf("read %s: a %T is no object", t.kind.Name, o)
	}
	key, now := t.key(m), version{m.GetUID(), m.GetResourceVersion()}
	was, known := t.known[key]
	if known && was == now {
		return nil
	}
	t.known[key] = now
	obj, problems := t.decode(o)
	for i := range problems {
		problems[i].Key = key
	}
	s := t.source
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(problems) == 0:
		s.pending[key] = obj
		delete(s.bad, key)
	case known && was.uid != now.uid:
		s.pending[key] = nil // the last good version was another object's
		s.bad[key] = problems
	default:
		s.bad[key] = problems
	}
	return nil
}

func (t *table) remove(key source.Key) {
	delete(t.known, key)
	s := t.source
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[key] = nil
	delete(s.bad, key)
}
