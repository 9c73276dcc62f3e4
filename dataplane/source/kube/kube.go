// SPDX-License-Identifier: Apache-2.0

// Package kube is the source that reads a Kubernetes API server and watches it, over client-go's reflectors: it delivers what
// source/file delivers. Kinds that are not installed are waited for, each by itself; while the server does not answer,
// what was read last stays. It writes nothing to the server. It judges single objects, never what they mean together.
// Sources: Kubernetes API concepts, "Efficient detection of changes"; k8s.io/client-go/tools/cache.
package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// How long a burst of events is gathered: until it pauses for settle, but never longer than settleMax.
const (
	settle    = 5 * time.Millisecond
	settleMax = 50 * time.Millisecond
)

// Options narrow what is read.
type Options struct {
	// Kinds are names of those that are read; empty means all.
	Kinds []string
	// Node leaves out pods of other nodes, and other nodes; "" leaves out none.
	Node string
	// Retry is how long a kind that is not installed, or that could not be asked for, is left alone; 0 means 2 s.
	Retry time.Duration
	Log   *slog.Logger // may be nil
}

// Source reads one API server. Make it with New.
type Source struct {
	options Options
	log     *slog.Logger
	kinds   []source.Kind
	health  *health
	dirty   chan struct{} // holds one note that something is pending or bad
	ready   chan struct{}

	builtin map[string]rest.Interface // by group
	custom  dynamic.Interface

	mu       sync.Mutex // guards what follows
	unread   map[string]bool
	pending  map[source.Key]source.Object // nil removes
	bad      map[source.Key][]source.Problem
	objects  *source.Objects
	changed  chan struct{}
	problems []source.Problem
}

var _ source.Source = (*Source)(nil)

// New prepares to read cluster; it does no I/O.
func New(cluster *Cluster, o Options) (*Source, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Retry <= 0 {
		o.Retry = 2 * time.Second
	}
	s := &Source{
		options: o, log: o.Log, health: newHealth(o.Log), dirty: make(chan struct{}, 1), ready: make(chan struct{}),
		unread: map[string]bool{}, pending: map[source.Key]source.Object{}, bad: map[source.Key][]source.Problem{},
		objects: &source.Objects{}, changed: make(chan struct{}),
	}
	for _, k := range source.Kinds() {
		if len(o.Kinds) == 0 || slices.Contains(o.Kinds, k.Name) {
			s.kinds = append(s.kinds, k)
			s.unread[k.Name] = true
		}
	}
	for _, name := range o.Kinds {
		if !s.unread[name] {
			return nil, fmt.Errorf("read objects: there is no kind %q", name)
		}
	}
	var err error
	if s.builtin, err = cluster.builtin(); err == nil {
		s.custom, err = cluster.custom()
	}
	if err != nil {
		return nil, fmt.Errorf("read objects: %w", err)
	}
	return s, nil
}

// Ready implements source.Source.
func (s *Source) Ready() <-chan struct{} { return s.ready }

// Load implements source.Source.
func (s *Source) Load() *source.Objects {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects
}

// Changed implements source.Source.
func (s *Source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Problems implements source.Source.
func (s *Source) Problems() []source.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problems
}

// Health tells how reading goes.
func (s *Source) Health() Health { return s.health.now() }

// Run implements source.Source. It may be called once. No state of the API server ends it.
func (s *Source) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, k := range s.kinds {
		g.Go(func() error { s.follow(ctx, k); return nil })
	}
	g.Go(func() error { s.gather(ctx); return nil })
	return g.Wait()
}

// gather publishes what has come, a burst at a time, and nothing before every kind was read once.
func (s *Source) gather(ctx context.Context) {
	var since time.Time
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.dirty:
			if since.IsZero() {
				since = time.Now()
			}
			quiet.Reset(min(settle, max(0, settleMax-time.Since(since))))
		case <-quiet.C:
			since = time.Time{}
			s.publish()
		}
	}
}

func (s *Source) note() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// publish makes one new snapshot of everything that changed since the last one.
func (s *Source) publish() {
	s.mu.Lock()
	if len(s.unread) > 0 {
		s.mu.Unlock()
		return
	}
	before, now := s.problems, sorted(s.bad)
	changes := s.pending
	s.pending = map[source.Key]source.Object{}
	if len(changes) > 0 || !source.SameProblems(before, now) {
		s.problems = now
		s.objects = s.objects.With(changes)
		close(s.changed)
		s.changed = make(chan struct{})
	}
	s.mu.Unlock()
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
	source.Report(s.log, before, now)
}

func sorted(bad map[source.Key][]source.Problem) []source.Problem {
	var out []source.Problem
	for _, p := range slices.Collect(maps.Values(bad)) {
		out = append(out, p...)
	}
	slices.SortStableFunc(out, func(a, b source.Problem) int { return strings.Compare(a.Error(), b.Error()) })
	return out
}

// read marks a kind as read once; what it holds is pending by then.
func (s *Source) read(kind string) {
	s.mu.Lock()
	delete(s.unread, kind)
	s.mu.Unlock()
	s.note()
}
