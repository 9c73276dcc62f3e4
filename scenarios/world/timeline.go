// SPDX-License-Identifier: Apache-2.0

package world

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/onsi/ginkgo/v2"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/wire"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// Bounds of what is kept for a timeline that may never be drawn.
const (
	maxEvents      = 10_000
	maxPacketBytes = 32 << 20 // of one node, looked at between scenarios
	timelineLines  = 80       // that a failure prints; the bundle has all
)

// flightRecorder keeps what a failure's timeline needs beside the daemons' logs: what the scenario itself did, and the
// packets on the nodes' wires that open, end or refuse connections.
type flightRecorder struct {
	mu     sync.Mutex
	events lab.Timeline // guarded by mu

	wires map[string]*nodeWire // by node; owned by the suite
}

// nodeWire is a running recording.
type nodeWire struct {
	capture lab.Capture
	packets safeBuffer
}

// safeBuffer is written by a recording while others ask for its size.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Len()
}

// note adds an event.
func (f *flightRecorder) note(at time.Time, kind lab.EventKind, source, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.events) >= maxEvents {
		f.events = append(f.events[:0], f.events[maxEvents/2:]...)
	}
	f.events = append(f.events, lab.Event{Time: at, Kind: kind, Source: source, Text: fmt.Sprintf(format, args...)})
}

// recordWires begins to record on every node; a lab that cannot capture has a timeline without packets.
func (w *World) recordWires(ctx context.Context) error {
	if len(w.Capabilities().Missing(lab.CapCapture)) > 0 {
		return nil
	}
	nodes := w.Nodes()
	wires, errs := make([]*nodeWire, len(nodes)), make([]error, len(nodes))
	var all sync.WaitGroup
	for i, node := range nodes {
		all.Go(func() {
			n := &nodeWire{}
			n.capture, errs[i] = w.Capture(ctx, lab.Target{Node: node, Filter: "syn or fin or rst or icmp", Stream: &n.packets})
			if errs[i] != nil {
				errs[i] = fmt.Errorf("record on the wire of %s: %w", node, errs[i])
				return
			}
			wires[i] = n
		})
	}
	all.Wait()
	w.flight.wires = map[string]*nodeWire{}
	for i, node := range nodes {
		if wires[i] != nil {
			w.flight.wires[node] = wires[i]
		}
	}
	return errors.Join(errs...)
}

// dropWires ends the recordings without waiting for their packets.
func (w *World) dropWires(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	for _, n := range w.flight.wires {
		_, _, _ = n.capture.Stop(ctx) // it says that it was cut short
	}
	w.flight.wires = nil
}

// trim begins the recordings anew if they hold much.
func (w *World) trim(ctx context.Context) error {
	for _, n := range w.flight.wires {
		if n.packets.Len() > maxPacketBytes {
			w.dropWires(ctx)
			return w.recordWires(ctx)
		}
	}
	return nil
}

// Timeline is what happened in the lab between two times: what the scenario did and got, what the proxies and the other
// daemons logged, and the packets of the nodes. The recordings are over then. What cannot be had is named in the error.
func (w *World) Timeline(ctx context.Context, begin, end time.Time) (lab.Timeline, error) {
	w.flight.mu.Lock()
	t := append(lab.Timeline(nil), w.flight.events...)
	w.flight.mu.Unlock()
	var errs []error
	add := func(events lab.Timeline, err error) {
		t = append(t, events...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	for _, node := range w.Nodes() {
		add(w.logEvents(ctx, node, lab.DaemonZtunnel))
		add(w.logEvents(ctx, node, lab.DaemonCNIAgent))
	}
	add(w.logEvents(ctx, "", lab.DaemonControl))
	for node, n := range w.flight.wires {
		add(n.events(ctx, "wire "+node))
	}
	w.flight.wires = nil
	add(w.refusals(ctx, end))
	return t.Within(begin, end), errors.Join(errs...)
}

// refusals are what NetworkPolicy has dropped until then, by node; when each packet was is on the wire alone.
func (w *World) refusals(ctx context.Context, until time.Time) (lab.Timeline, error) {
	if len(w.Capabilities().Missing(lab.CapInspect, lab.CapNetworkPolicy)) > 0 {
		return nil, nil
	}
	var t lab.Timeline
	var errs []error
	for _, node := range w.Nodes() {
		in, err := w.Inspect(ctx, lab.Target{Node: node})
		errs = append(errs, err)
		for _, line := range in.Refused {
			t = append(t, lab.Event{Time: until, Kind: lab.EventDecision, Source: "node " + node, Text: line})
		}
	}
	return t, errors.Join(errs...)
}

func (w *World) logEvents(ctx context.Context, node, daemon string) (lab.Timeline, error) {
	r, err := w.Driver.Daemon(node, daemon).Logs(ctx, time.Time{})
	if err != nil {
		return nil, fmt.Errorf("read log of %s %s: %w", daemon, node, err)
	}
	defer r.Close()
	return lab.LogEvents(strings.TrimSpace(daemon+" "+node), r)
}

func (n *nodeWire) events(ctx context.Context, source string) (lab.Timeline, error) {
	if _, _, err := n.capture.Stop(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	c, err := wire.Read(&n.packets.b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	return lab.PacketEvents(source, c), nil
}

// tell draws the timeline of a failed scenario into its report and leaves the whole of it in its bundle.
func (w *World) tell(ctx context.Context, bundle lab.Sink, begin, end time.Time) error {
	t, err := w.Timeline(ctx, begin, end)
	var text bytes.Buffer
	errs := []error{err, t.Draw(&text, 0), bundle.Put("timeline.txt", text.Bytes())}
	doc, err := json.MarshalIndent(t, "", "  ")
	errs = append(errs, err, bundle.Put("timeline.json", doc))
	fmt.Fprintf(ginkgo.GinkgoWriter, "\nwhat happened in %s, from %s on:\n", w.Spec.Name, begin.Format("15:04:05.000"))
	return errors.Join(append(errs, t.Draw(ginkgo.GinkgoWriter, timelineLines))...)
}

// Call is lab.Lab's, and is remembered for the timeline.
func (w *World) Call(ctx context.Context, from lab.PodRef, url string, o workload.Options) (workload.Result, error) {
	w.calls.Add(1)
	defer w.calls.Add(-1)
	began := time.Now()
	w.flight.note(began, lab.EventApp, from.String(), "calls %s", url)
	res, err := w.Lab.Call(ctx, from, url, o)
	end := time.Now()
	switch first := res.First(); {
	case err != nil:
		w.flight.note(end, lab.EventApp, from.String(), "call of %s: %v", url, err)
	case res.OK+res.Failed > 1:
		w.flight.note(end, lab.EventApp, from.String(), "%d calls of %s: %d good, %d failed %v", res.OK+res.Failed, url, res.OK, res.Failed, res.Errors)
	default:
		w.flight.note(first.Start.Add(first.Latency), lab.EventApp, from.String(), "call of %s: %s", url, outcome(first))
	}
	return res, err
}

func outcome(c workload.Call) string {
	if !c.OK {
		return fmt.Sprintf("%s %s", c.Class, c.Error)
	}
	text := "good"
	if c.Status != 0 {
		text = fmt.Sprintf("status %d", c.Status)
	}
	if s := c.Seen; s != nil {
		text += fmt.Sprintf(" from %s/%s, which saw %s", s.Namespace, s.Workload, s.RemoteAddr)
	}
	return text
}

// Exec is lab.Driver's, and is remembered for the timeline.
func (w *World) Exec(ctx context.Context, pod lab.PodRef, argv []string, stdio lab.Stdio) (int, error) {
	w.calls.Add(1)
	defer w.calls.Add(-1)
	w.flight.note(time.Now(), lab.EventApp, pod.String(), "runs %s", strings.Join(argv, " "))
	exit, err := w.Lab.Exec(ctx, pod, argv, stdio)
	w.flight.note(time.Now(), lab.EventApp, pod.String(), "%s ended: exit code %d, %v", argv[0], exit, err)
	return exit, err
}

// Apply is lab.Driver's, and is remembered for the timeline.
func (w *World) Apply(ctx context.Context, objs ...runtime.Object) error {
	w.loan.apply(objs)
	w.changed("apply", objs)
	return w.Lab.Apply(ctx, objs...)
}

// Delete is lab.Driver's, and is remembered for the timeline.
func (w *World) Delete(ctx context.Context, objs ...runtime.Object) error {
	w.loan.delete(objs)
	w.changed("delete", objs)
	return w.Lab.Delete(ctx, objs...)
}

func (w *World) changed(verb string, objs []runtime.Object) {
	for _, o := range objs {
		w.flight.note(time.Now(), lab.EventChange, "scenario", "%s %s", verb, objectName(o))
	}
}

// Daemon is lab.Driver's; what is done to it is remembered for the timeline.
func (w *World) Daemon(node, name string) lab.Daemon {
	return &watchedDaemon{Daemon: w.Lab.Daemon(node, name), name: strings.TrimSpace(name + " " + node), flight: w.flight, loan: w.loan}
}

type watchedDaemon struct {
	lab.Daemon
	name   string
	flight *flightRecorder
	loan   *loan
}

func (d *watchedDaemon) note(what string, err error) error {
	d.loan.touch(what + " " + d.name)
	if err != nil {
		what += ": " + err.Error()
	}
	d.flight.note(time.Now(), lab.EventChange, "scenario", "%s %s", what, d.name)
	return err
}

// Signal implements lab.Daemon.
func (d *watchedDaemon) Signal(ctx context.Context, sig os.Signal) error {
	return d.note("send "+sig.String()+" to", d.Daemon.Signal(ctx, sig))
}

// Stop implements lab.Daemon.
func (d *watchedDaemon) Stop(ctx context.Context) error { return d.note("stopped", d.Daemon.Stop(ctx)) }

// Start implements lab.Daemon.
func (d *watchedDaemon) Start(ctx context.Context, env ...string) error {
	return d.note("started", d.Daemon.Start(ctx, env...))
}

// Restart implements lab.Daemon.
func (d *watchedDaemon) Restart(ctx context.Context, env ...string) error {
	return d.note("restarted", d.Daemon.Restart(ctx, env...))
}

// Replace implements lab.Daemon.
func (d *watchedDaemon) Replace(ctx context.Context, env ...string) error {
	return d.note("replaced", d.Daemon.Replace(ctx, env...))
}

// Link is lab.Driver's; what is done to it is remembered for the timeline.
func (w *World) Link(a, b string) lab.Link {
	return &watchedLink{Link: w.Lab.Link(a, b), name: a + " – " + b, flight: w.flight, loan: w.loan}
}

type watchedLink struct {
	lab.Link
	name   string
	flight *flightRecorder
	loan   *loan
}

// Cut implements lab.Link.
func (l *watchedLink) Cut(ctx context.Context) error {
	l.flight.note(time.Now(), lab.EventChange, "scenario", "cut link %s", l.name)
	l.loan.link(l.name, false)
	return l.Link.Cut(ctx)
}

// Impair implements lab.Link.
func (l *watchedLink) Impair(ctx context.Context, there, back lab.Impairment) error {
	l.flight.note(time.Now(), lab.EventChange, "scenario", "impair link %s", l.name)
	l.loan.link(l.name, false)
	return l.Link.Impair(ctx, there, back)
}

// Restore implements lab.Link.
func (l *watchedLink) Restore(ctx context.Context) error {
	l.flight.note(time.Now(), lab.EventChange, "scenario", "restore link %s", l.name)
	err := l.Link.Restore(ctx)
	l.loan.link(l.name, err == nil)
	return err
}
