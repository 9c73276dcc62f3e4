// SPDX-License-Identifier: Apache-2.0

// Package catalog holds what a proxy knows about the mesh: an immutable, indexed snapshot behind one atomic pointer,
// a store that applies deltas to it, and the choice of an upstream for a destination.
// It does not read the wire (xds), judge connections (authz) or open any. Live connections watch it; it calls nobody.
//
// A snapshot is a fixed number of leaves per index, copied when written, so that a delta copies only what it touches.
//
// Two objects with one key. Of two workloads or services with the same uid or "namespace/hostname" the later one
// replaces the earlier. Of several workloads with the same address (a pod's address is used again before the old pod
// is gone) all are kept: a pod is preferred to other kinds, and among equals the one that was applied last; when it
// goes, the next one is found again. Host-network workloads are not found by address at all: it is their node's.
//
// Source: reference, "Outbound decision tree", "Endpoint choice", "Names", "L4 authorization" rule 1.
package catalog

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Delta is a change: removals first, then upserts. The store takes ownership of the values: the caller must neither
// keep writing to them nor put them into another store (strings are replaced by equal, shared ones).
type Delta struct {
	Workloads []*mesh.Workload
	Services  []*mesh.Service
	Policies  []*mesh.Policy

	RemovedAddresses []string // workload uids or service keys ("namespace/hostname")
	RemovedPolicies  []string // "namespace/name"
}

// Empty reports whether d changes nothing.
func (d *Delta) Empty() bool {
	return len(d.Workloads)+len(d.Services)+len(d.Policies)+len(d.RemovedAddresses)+len(d.RemovedPolicies) == 0
}

// Store holds the current snapshot. All methods may be called concurrently; readers never wait for writers.
type Store struct {
	current atomic.Pointer[Snapshot]

	mu     sync.Mutex // one writer at a time; guards the rest
	intern interner
	epoch  uint64
}

// New is an empty store.
func New() *Store {
	s := &Store{}
	s.current.Store(&Snapshot{changed: make(chan struct{})})
	return s
}

// Load is the current snapshot; never nil.
func (s *Store) Load() *Snapshot { return s.current.Load() }

// Changed is closed at the next change. Fetch it before Load, and no change is missed.
func (s *Store) Changed() <-chan struct{} { return s.current.Load().changed }

// WaitFor returns nil once cond holds for the current snapshot, or ctx's error.
func (s *Store) WaitFor(ctx context.Context, cond func(*Snapshot) bool) error {
	for {
		snap := s.current.Load()
		if cond(snap) {
			return nil
		}
		select {
		case <-snap.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Apply makes d visible in one step and wakes the watchers. An empty delta does nothing.
func (s *Store) Apply(d Delta) {
	if d.Empty() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	s.epoch++
	e := newEdit(old, s.epoch, &s.intern)
	for _, name := range d.RemovedAddresses {
		e.removeWorkload(name)
		e.removeService(name)
	}
	for _, name := range d.RemovedPolicies {
		e.removePolicy(name)
	}
	for _, v := range d.Services {
		e.putService(v)
	}
	for _, v := range d.Workloads {
		e.putWorkload(v)
	}
	for _, v := range d.Policies {
		e.putPolicy(v)
	}
	e.finish()
	s.intern.sweep(e.snap)
	s.current.Store(e.snap)
	close(old.changed)
}
