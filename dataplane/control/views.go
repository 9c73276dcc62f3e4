// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// views hands the newest view to everyone who serves it.
type views struct {
	mu   sync.Mutex // guards what follows
	view *view      // nil before the first
	wake chan struct{}
}

func newViews() *views { return &views{wake: make(chan struct{})} }

func (v *views) load() *view {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.view
}

// changed is closed when a view newer than the one that load gives now is there.
func (v *views) changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.wake
}

func (v *views) wait(ctx context.Context) (*view, error) {
	for {
		changed := v.changed()
		if now := v.load(); now != nil {
			return now, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (v *views) publish(next *view) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.view = next
	close(v.wake)
	v.wake = make(chan struct{})
}

// follow compiles whenever objects change, until ctx ends. It rests for as long as the last compilation took, so that no
// rate of changes takes more than half a core.
func (s *Server) follow(ctx context.Context) error {
	select {
	case <-s.cfg.Source.Ready():
	case <-ctx.Done():
		return nil
	}
	for {
		changed := s.cfg.Source.Changed()
		took := s.compile(s.cfg.Source.Load())
		rest := time.NewTimer(took)
		select {
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Server) compile(o *source.Objects) time.Duration {
	start := time.Now()
	prev := s.views.load()
	snap := Compile(o, s.settings)
	next := newView(snap, prev)
	took := time.Since(start)
	s.reportProblems(prev, next)
	if s.cfg.Statuses != nil {
		s.cfg.Statuses.Offer(o, withRefused(snap.Conditions, o, s.cfg.Source.Problems()))
	}
	if next.same() {
		// Only what people see has changed; nobody needs to be woken.
		next.generation = prev.generation
		next.deltas = prev.deltas
		s.views.mu.Lock()
		s.views.view = next
		s.views.mu.Unlock()
		return took
	}
	s.views.publish(next)
	s.ready.Done("objects")
	s.log.Info("mesh compiled", "version", next.generation, "workloads", len(snap.Workloads), "services", len(snap.Services),
		"policies", len(snap.Policies), "problems", len(snap.Problems)+len(next.problems), "took", took)
	return took
}

func (s *Server) reportProblems(prev, next *view) {
	known := map[string]bool{}
	if prev != nil {
		for _, p := range append(prev.snapshot.Problems[:len(prev.snapshot.Problems):len(prev.snapshot.Problems)], prev.problems...) {
			known[p.Error()] = true
		}
	}
	for _, p := range append(next.snapshot.Problems[:len(next.snapshot.Problems):len(next.snapshot.Problems)], next.problems...) {
		if !known[p.Error()] {
			s.log.Warn("object cannot have its meaning", "object", p.Key.String(), "field", p.Field, "err", p.Err)
		}
	}
}
