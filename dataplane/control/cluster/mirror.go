// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// mirror keeps what is read of objects of one name, by namespace, and says when it changes.
type mirror[T any] struct {
	read    func(any) T
	changed func()

	mu     sync.Mutex // guards what follows
	have   map[string]T
	serial map[string]int // counts what happened in a namespace
	synced bool
}

func newMirror[T any](read func(any) T, changed func()) *mirror[T] {
	return &mirror[T]{read: read, changed: changed, have: map[string]T{}, serial: map[string]int{}}
}

// run follows what l lists until ctx ends.
func (m *mirror[T]) run(ctx context.Context, l cache.ListerWatcher) {
	ctx = klog.NewContext(ctx, logr.Discard()) // source/kube, which reads the same server, logs its outages
	cache.NewReflectorWithOptions(l, nil, m, cache.ReflectorOptions{Name: "mirror", Backoff: retries()}).RunWithContext(ctx)
}

// load is what there is, and how often that changed; not ok before the first list.
func (m *mirror[T]) load() (have map[string]T, serial map[string]int, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.have), maps.Clone(m.serial), m.synced
}

// Add implements cache.ReflectorStore.
func (m *mirror[T]) Add(o any) error { return m.Update(o) }

// Update implements cache.ReflectorStore.
func (m *mirror[T]) Update(o any) error {
	return m.edit(func() error { return m.put(o) })
}

// Delete implements cache.ReflectorStore.
func (m *mirror[T]) Delete(o any) error {
	return m.edit(func() error {
		meta, ok := o.(metav1.Object)
		if !ok {
			return fmt.Errorf("delete: a %T is no object", o)
		}
		delete(m.have, meta.GetNamespace())
		m.serial[meta.GetNamespace()]++
		return nil
	})
}

// Replace implements cache.ReflectorStore.
func (m *mirror[T]) Replace(list []any, _ string) error {
	return m.edit(func() error {
		m.synced = true
		for namespace := range m.have {
			m.serial[namespace]++
		}
		clear(m.have)
		for _, o := range list {
			if err := m.put(o); err != nil {
				return err
			}
		}
		return nil
	})
}

// Resync implements cache.ReflectorStore.
func (m *mirror[T]) Resync() error { return nil }

func (m *mirror[T]) put(o any) error {
	meta, ok := o.(metav1.Object)
	if !ok {
		return fmt.Errorf("read: a %T is no object", o)
	}
	m.have[meta.GetNamespace()] = m.read(o)
	m.serial[meta.GetNamespace()]++
	return nil
}

func (m *mirror[T]) edit(do func() error) error {
	m.mu.Lock()
	err := do()
	m.mu.Unlock()
	m.changed()
	return err
}
