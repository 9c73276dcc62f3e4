// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// fakePod serves until it is drained.
type fakePod struct {
	name string
	r    *rig
	once sync.Once
	stop chan struct{}
}

func (p *fakePod) run(ctx context.Context) {
	p.r.note("run " + p.name)
	select {
	case <-p.stop:
	case <-ctx.Done():
	}
	p.r.note("end " + p.name)
}

func (p *fakePod) drain(time.Duration) { p.once.Do(func() { close(p.stop) }) }

// rig is a manager over fake pods.
type rig struct {
	*manager
	mu       sync.Mutex // guards the rest
	events   []string
	failures map[string]int // how often the start of a uid still fails
	ready    bool
	active   int
	pending  int
}

func (r *rig) locked(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *rig) note(s string) { r.locked(func() { r.events = append(r.events, s) }) }

// fail makes the next n starts of uid fail.
func (r *rig) fail(uid string, n int) { r.locked(func() { r.failures[uid] = n }) }

// took returns what happened since the last call, sorted: drains and starts are concurrent.
func (r *rig) took() []string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.events
	r.events = nil
	slices.Sort(got)
	return got
}

func newRig() *rig {
	r := &rig{failures: map[string]int{}}
	r.manager = newManager(nil, 5*time.Second, managerHooks{
		ready:   func(b bool) { r.locked(func() { r.ready = b }) },
		counts:  func(a, p int) { r.locked(func() { r.active, r.pending = a, p }) },
		started: func() {},
		stopped: func() {},
	}, slog.New(slog.DiscardHandler))
	return r
}

// pod is a candidate whose proxy is called uid@netns.
func (r *rig) pod(uid string, netns uint64) candidate {
	name := uid + "@" + string(rune('0'+netns))
	return candidate{
		Workload: zds.Workload{UID: uid, Name: uid, Namespace: "ns", ServiceAccount: "sa"},
		netns:    netns,
		start: func(context.Context) (pod, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.failures[uid] > 0 {
				r.failures[uid]--
				return nil, errors.New("no luck")
			}
			return &fakePod{name: name, r: r, stop: make(chan struct{})}, nil
		},
		release: func() { r.note("release " + name) },
	}
}

func (r *rig) expect(t *testing.T, what string, ready bool, events ...string) {
	t.Helper()
	if d := cmp.Diff(events, r.took()); d != "" {
		t.Errorf("%s: events (-want +got):\n%s", what, d)
	}
	r.locked(func() {
		if r.ready != ready {
			t.Errorf("%s: ready = %t, want %t", what, r.ready, ready)
		}
	})
}

// managed runs body against a running manager on fake time.
func withManager(t *testing.T, body func(ctx context.Context, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		body(ctx, r)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestManagerSnapshot(t *testing.T) {
	withManager(t, func(ctx context.Context, r *rig) {
		must(t, r.add(ctx, r.pod("a", 1)))
		r.expect(t, "first add", false, "run a@1")
		must(t, r.SnapshotSent())
		r.expect(t, "snapshot", true)
		must(t, r.add(ctx, r.pod("a", 1)))
		r.expect(t, "same uid and namespace", true, "release a@1")
		must(t, r.add(ctx, r.pod("a", 2)))
		r.expect(t, "same uid in a new namespace", true, "end a@1", "run a@2")
		must(t, r.Del("a"))
		r.expect(t, "del", true, "end a@2")
		must(t, r.Del("unknown"))
		r.expect(t, "del of an unknown pod", true)
		if err := r.Keep("a"); !errors.Is(err, errKeepAfter) {
			t.Errorf("keep after the snapshot: %v", err)
		}
		if err := r.SnapshotSent(); !errors.Is(err, errSecondSnapshot) {
			t.Errorf("second snapshot: %v", err)
		}
	})
}

func TestManagerReconnect(t *testing.T) {
	withManager(t, func(ctx context.Context, r *rig) {
		for _, uid := range []string{"added", "kept", "deleted", "gone"} {
			must(t, r.add(ctx, r.pod(uid, 1)))
		}
		must(t, r.SnapshotSent())
		r.expect(t, "first snapshot", true, "run added@1", "run deleted@1", "run gone@1", "run kept@1")
		r.Disconnected()
		r.expect(t, "a lost agent stops nothing but readiness", false)

		must(t, r.add(ctx, r.pod("added", 1)))
		must(t, r.Keep("kept"))
		must(t, r.Keep("stranger"))
		must(t, r.add(ctx, r.pod("deleted", 1)))
		must(t, r.Del("deleted"))
		r.expect(t, "before the snapshot a del merely forgets", false, "release added@1", "release deleted@1")
		must(t, r.SnapshotSent())
		r.expect(t, "what was not named is dropped", true, "end deleted@1", "end gone@1")
		r.locked(func() {
			if r.active != 2 {
				t.Errorf("%d proxies, want 2", r.active)
			}
		})
	})
}

func TestManagerPending(t *testing.T) {
	withManager(t, func(ctx context.Context, r *rig) {
		must(t, r.SnapshotSent())
		r.fail("p", 2)
		err := r.add(ctx, r.pod("p", 1))
		if err == nil || !strings.Contains(err.Error(), "no luck") || !strings.Contains(err.Error(), "ns/p") {
			t.Errorf("the failed start is the answer to the agent; got %v", err)
		}
		r.expect(t, "a pending pod withholds readiness", false)
		r.locked(func() {
			if r.pending != 1 {
				t.Errorf("pending = %d, want 1", r.pending)
			}
		})
		<-time.After(6 * time.Second) // fake time: the first retry fails as well
		r.expect(t, "first retry", false)
		<-time.After(5 * time.Second)
		r.expect(t, "second retry", true, "run p@1")

		r.fail("q", 9)
		if err := r.add(ctx, r.pod("q", 1)); err == nil {
			t.Error("no error")
		}
		must(t, r.Del("q"))
		r.expect(t, "del of a pending pod", true, "release q@1")

		r.fail("s", 1)
		if err := r.add(ctx, r.pod("s", 1)); err == nil {
			t.Error("no error")
		}
		must(t, r.add(ctx, r.pod("s", 1)))
		r.expect(t, "an add retries a pending pod at once", true, "release s@1", "run s@1")
	})
}

func TestManagerShutdown(t *testing.T) {
	withManager(t, func(ctx context.Context, r *rig) {
		must(t, r.add(ctx, r.pod("a", 1)))
		r.fail("b", 1)
		_ = r.add(ctx, r.pod("b", 1))
		must(t, r.SnapshotSent())
		r.Shutdown(ctx, time.Second)
		r.expect(t, "shutdown waits", false, "end a@1", "release b@1", "run a@1")
		if err := r.add(ctx, r.pod("c", 1)); !errors.Is(err, errStopping) {
			t.Errorf("add after shutdown: %v", err)
		}
		r.expect(t, "refused", false, "release c@1")
	})
}

func TestManagerCut(t *testing.T) {
	var r *rig
	withManager(t, func(ctx context.Context, rr *rig) {
		r = rr
		must(t, r.add(ctx, r.pod("a", 1)))
	})
	if d := cmp.Diff([]string{"run a@1", "end a@1"}, r.events); d != "" {
		t.Errorf("the end of Run ends the proxies (-want +got):\n%s", d)
	}
}
