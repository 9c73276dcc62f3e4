// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

const patience = 10 * time.Second

// journal is what the fakes did, in order.
type journal struct {
	mu     sync.Mutex
	cond   sync.Cond
	events []string
}

func newJournal() *journal {
	j := &journal{}
	j.cond.L = &j.mu
	return j
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, fmt.Sprintf(format, args...))
	j.cond.Broadcast()
}

// await waits until cond holds for the events so far.
func (j *journal) await(t *testing.T, what string, cond func([]string) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { j.mu.Lock(); defer j.mu.Unlock(); j.cond.Broadcast() })
	defer stop()
	j.mu.Lock()
	defer j.mu.Unlock()
	for !cond(j.events) {
		if ctx.Err() != nil {
			t.Fatalf("waiting for %s: %q", what, j.events)
		}
		j.cond.Wait()
	}
}

// expect waits for exactly these events since the last expect.
func (j *journal) expect(t *testing.T, want ...string) {
	t.Helper()
	j.await(t, fmt.Sprintf("%q", want), func(got []string) bool { return len(got) >= len(want) && slices.Equal(got[:len(want)], want) })
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = slices.Delete(j.events, 0, len(want))
}

// eventually waits for what comes shortly after an event.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waiting for %s", what)
		}
	}
}

func (j *journal) clear() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = nil
}

func (j *journal) expectNothing(t *testing.T) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.events) > 0 {
		t.Errorf("unexpected: %q", j.events)
	}
}

// fakes are all of an agent's seams.
type fakes struct {
	*journal

	mu      sync.Mutex
	objects *source.Objects
	changed chan struct{}

	addErr, delErr, applyErr, removeErr error
	installed                           bool
	diff                                []string
	noNetns                             bool
	noted                               string
	recorded                            map[PodRef]string
	snapshot                            func() []zds.Entry
}

func newFakes() *fakes {
	return &fakes{journal: newJournal(), objects: &source.Objects{}, changed: make(chan struct{}), recorded: map[PodRef]string{}}
}

func (f *fakes) set(objs ...source.Object) {
	changes := map[source.Key]source.Object{}
	for _, o := range objs {
		changes[keyOf(o)] = o
	}
	f.apply(changes)
}

func (f *fakes) remove(o source.Object) { f.apply(map[source.Key]source.Object{keyOf(o): nil}) }

func (f *fakes) apply(changes map[source.Key]source.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects = f.objects.With(changes)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakes) fail(what *error, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*what = err
}

func (f *fakes) get(what *error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *what
}

func keyOf(o source.Object) source.Key {
	kind := "Namespace"
	switch o.(type) {
	case *corev1.Pod:
		kind = "Pod"
	case *corev1.Node:
		kind = "Node"
	}
	return source.Key{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

type fakeSource struct{ *fakes }

func (f fakeSource) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (f fakeSource) Ready() <-chan struct{}        { c := make(chan struct{}); close(c); return c }
func (f fakeSource) Problems() []source.Problem    { return nil }
func (f fakeSource) Load() *source.Objects         { f.mu.Lock(); defer f.mu.Unlock(); return f.objects }
func (f fakeSource) Changed() <-chan struct{}      { f.mu.Lock(); defer f.mu.Unlock(); return f.changed }

type fakeProxies struct{ *fakes }

func (f fakeProxies) Run(ctx context.Context) error {
	f.mu.Lock()
	snapshot := f.snapshot
	f.mu.Unlock()
	if snapshot != nil {
		for _, e := range snapshot() {
			f.add("snapshot %s %v", e.UID, e.NS != nil)
		}
	}
	<-ctx.Done()
	return nil
}

func (f fakeProxies) Add(_ context.Context, w zds.Workload, ns *netns.NS) error {
	if err := f.get(&f.addErr); err != nil {
		f.add("add %s refused", w.UID)
		return err
	}
	f.add("add %s %s/%s/%s", w.UID, w.Namespace, w.Name, w.ServiceAccount)
	return nil
}

func (f fakeProxies) Del(_ context.Context, uid string) error {
	f.add("del %s", uid)
	return f.get(&f.delErr)
}

type fakeRules struct{ *fakes }

func (f fakeRules) Apply(_ context.Context, _ *netns.NS, p capture.Plan) (bool, error) {
	if err := f.get(&f.applyErr); err != nil {
		f.add("apply refused")
		return false, err
	}
	f.add("apply %d", len(p.Tables))
	return true, nil
}

func (f fakeRules) Diff(context.Context, *netns.NS, capture.Plan) ([]string, error) {
	f.add("diff")
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.diff, nil
}

func (f fakeRules) Remove(context.Context, *netns.NS) error {
	f.add("remove")
	return f.get(&f.removeErr)
}

func (f fakeRules) Installed(context.Context, *netns.NS) (bool, error) { return f.installed, nil }

type fakeFinder struct{ *fakes }

func (f fakeFinder) Find(uid string) (*netns.NS, error) {
	if f.noNetns {
		return nil, fs.ErrNotExist
	}
	return netns.Current()
}

type fakeAnnotator struct{ *fakes }

func (f fakeAnnotator) Set(p PodRef, value string) error {
	f.mu.Lock()
	same := f.recorded[p] == value
	f.recorded[p] = value
	f.mu.Unlock()
	if !same {
		f.add("annotate %s %s", p.UID, value)
	}
	return nil
}

func (f fakeAnnotator) Note(p PodRef, drift string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.noted = drift
	return nil
}

func (f fakeAnnotator) Clear(p PodRef) error {
	f.mu.Lock()
	delete(f.recorded, p)
	f.mu.Unlock()
	f.add("clear %s", p.UID)
	return nil
}

func (f fakeAnnotator) Recorded() map[PodRef]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[PodRef]string{}
	for k, v := range f.recorded {
		out[k] = v
	}
	return out
}

func (f *fakes) config() Config {
	return Config{
		Node: "node1", Objects: fakeSource{f}, Proxies: fakeProxies{f}, Rules: fakeRules{f}, Netns: fakeFinder{f}, Annotator: fakeAnnotator{f},
		ExcludeNamespaces: []string{"kube-system"}, BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond,
		AdmitTimeout: patience, Log: slog.New(slog.DiscardHandler),
	}
}

// start runs an agent until the test ends, and returns it with its plugin socket.
func start(t *testing.T, cfg Config) (*Agent, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "plugin.sock")
	cfg.Readiness = admin.NewReadiness()
	a := New(cfg)
	l, err := ListenPlugin(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	run(t, a, l)
	return a, socket
}

// run returns a function that ends the agent; the test's end does too.
func run(t *testing.T, a *Agent, l net.Listener) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func namespace(name, mode string) *corev1.Namespace {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if mode != "" {
		n.Labels = map[string]string{mesh.LabelDataplaneMode: mode}
	}
	return n
}

func pod(name string, opts ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{}, Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{NodeName: "node1", ServiceAccountName: name},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
	for _, o := range opts {
		o(p)
	}
	return p
}

func starting(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodPending} }

var errAway = errors.New("no ztunnel")
