// SPDX-License-Identifier: Apache-2.0

package world

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// Names of the counters that say whether a proxy handled a connection at all.
const (
	Opened   = "istio_tcp_connections_opened_total"
	Closed   = "istio_tcp_connections_closed_total"
	Failed   = "istio_tcp_connections_failed_total"
	Sent     = "istio_tcp_sent_bytes_total"
	Received = "istio_tcp_received_bytes_total"
	tcpNames = "istio_tcp_"
)

// Observation is everything that is known of one call.
type Observation struct {
	From lab.PodInfo
	To   lab.PodInfo // the pod that answered; zero if it is none of the lab's
	URL  string
	Call workload.Call

	Outbound *telemetry.Entry // what the client's ztunnel logged of it; nil: nothing
	Inbound  *telemetry.Entry // what the server's ztunnel logged of it; nil: nothing
	Metrics  Samples          // what changed in the TCP metrics of both ztunnels
}

// OnTheWire is the filter of what a node sends and gets, without what it tells itself: container runtimes hand on over the
// loopback, in plain text, what commands in pods print.
const OnTheWire = "not host 127.0.0.1 and not host ::1"

// Observe makes one call from a pod and gathers what every part says of it. Only an answer that could not be had at all,
// or evidence that the counters promise and that does not come, is an error: a failed call is an observation too.
// Observations of one lab must not overlap, since counters are shared.
func (w *World) Observe(ctx context.Context, from lab.PodInfo, url string, o workload.Options) (*Observation, error) {
	before, err := w.baseline(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now().Add(-time.Millisecond)
	res, err := w.Call(ctx, from.PodRef, url, o)
	if err != nil {
		return nil, err
	}
	obs := &Observation{From: from, URL: url, Call: res.First()}
	if seen := obs.Call.Seen; seen != nil {
		obs.To = w.pods[seen.Namespace+"/"+seen.Workload]
	}
	if err := w.evidence(ctx, obs, before, began); err != nil {
		return obs, err
	}
	return obs, nil
}

// evidence fills in metrics and log entries. A connection is counted as opened before its first byte passes, so after an
// answer the counters are final about whether a proxy took part; its log record follows when it ends.
func (w *World) evidence(ctx context.Context, obs *Observation, before map[string]tcpSamples, began time.Time) error {
	return Wait(ctx, Budget.Evidence, func(ctx context.Context) (bool, error) {
		if obs.unlogged() != nil { // it has not ended, and to look at the counters again is no use before
			if err := errors.Join(w.findEntries(ctx, obs, began, w.entriesSoFar), obs.unlogged()); err != nil {
				return false, err
			}
		}
		after, err := w.scrapeAll(ctx)
		if err != nil {
			return false, err
		}
		obs.Metrics = nil
		for node := range after {
			obs.Metrics = append(obs.Metrics, after[node].since(before[node])...)
		}
		if obs.Outbound == nil || obs.Inbound == nil {
			if err := w.findEntries(ctx, obs, began, w.entriesSoFar); err != nil {
				return false, err
			}
		}
		if obs.settled() && (obs.Outbound == nil || obs.Inbound == nil) { // there may be one that was not promised
			if err := w.findEntries(ctx, obs, began, w.Entries); err != nil {
				return false, err
			}
		}
		return obs.settled(), obs.missing()
	})
}

// settled: every connection that was opened was closed and logged.
func (o *Observation) settled() bool { return o.missing() == nil }

func (o *Observation) missing() error {
	if err := o.uncounted(); err != nil {
		return err
	}
	if o.Metrics.Sum(Opened, nil) > o.Metrics.Sum(Closed, nil) { // of an older connection the end may be counted now
		return fmt.Errorf("%v connections were opened, %v closed", o.Metrics.Sum(Opened, nil), o.Metrics.Sum(Closed, nil))
	}
	return o.unlogged()
}

// uncounted: a connection is counted before it is logged, so its counters were read too early if its record is there and they are not.
func (o *Observation) uncounted() error {
	for reporter, e := range map[string]*telemetry.Entry{"source": o.Outbound, "destination": o.Inbound} {
		if e == nil {
			continue
		}
		by := map[string]string{"reporter": reporter}
		if o.Metrics.Sum(Opened, by)+o.Metrics.Sum(Failed, by) == 0 {
			return fmt.Errorf("a ztunnel logged a connection of %s that it has not counted", e.Record.Src.Addr)
		}
	}
	return nil
}

// unlogged: the counters, as far as they are known, promise records that are not there.
func (o *Observation) unlogged() error {
	source, destination := map[string]string{"reporter": "source"}, map[string]string{"reporter": "destination"}
	out := o.Metrics.Sum(Opened, source) + o.Metrics.Sum(Failed, source)
	in := o.Metrics.Sum(Opened, destination) + o.Metrics.Sum(Failed, destination)
	switch {
	case out > 0 && o.Outbound == nil:
		return fmt.Errorf("%s counted a connection and logged none from %s", o.From.Node, o.Call.LocalAddr)
	case in > 0 && o.Inbound == nil:
		return fmt.Errorf("a ztunnel counted an inbound connection and none logged it")
	}
	return nil
}

// Settle waits until every connection that the lab's ztunnels counted as opened is counted as closed: calls that nobody observed have
// then no part in what is observed next. In a lab where connections last, it fails.
func (w *World) Settle(ctx context.Context) error {
	return Wait(ctx, Budget.Evidence, func(ctx context.Context) (bool, error) {
		all, err := w.scrapeAll(ctx)
		open := 0.0
		for _, s := range all {
			open += s.open()
		}
		return err == nil && open == 0, err
	})
}

// baseline is what the counters say before a call, once connections that have ended are counted as closed: the end of an
// older one would be taken for this call's. While other calls of the scenario are under way some may last, and are given
// a moment only.
func (w *World) baseline(ctx context.Context) (samples map[string]tcpSamples, err error) {
	budget := Budget.Evidence
	if w.calls.Load() > 0 {
		budget = Budget.Settle
	}
	err = Wait(ctx, budget, func(context.Context) (bool, error) {
		now, err := w.scrapeAll(ctx) // which the moment does not bound: on a busy machine one look may take as long
		if err != nil {
			return false, err
		}
		samples = now
		open := 0.0
		for _, s := range now {
			open += s.open()
		}
		return open == 0, nil
	})
	if samples != nil {
		return samples, nil
	}
	return nil, err
}

func (w *World) findEntries(ctx context.Context, obs *Observation, began time.Time, read readEntries) error {
	nodes := w.Nodes()
	logged := make([][]telemetry.Entry, len(nodes))
	g, each := errgroup.WithContext(ctx)
	for i, node := range nodes {
		g.Go(func() (err error) {
			logged[i], err = read(each, node, began)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var inbound []telemetry.Entry
	for i, node := range nodes {
		for _, e := range logged[i] {
			switch {
			case e.Record.Start.Before(began): // of an earlier call, logged late
			case e.Record.Direction == telemetry.Inbound:
				inbound = append(inbound, e)
			case node == obs.From.Node && obs.fromClient(e.Record):
				obs.Outbound = &e
			}
		}
	}
	for _, e := range inbound {
		if obs.joins(e.Record) {
			obs.Inbound = &e
		}
	}
	return nil
}

// fromClient compares addresses, not ports: where an older connection's tuple still stands in the way, netfilter's
// REDIRECT gives the client another source port, and the proxy sees only that one.
func (o *Observation) fromClient(r telemetry.Record) bool {
	src := r.Src.Addr.Addr().Unmap()
	if !o.Call.LocalAddr.IsValid() { // a reset met the client's connect, so it never learned its own address
		return slices.Contains(o.From.IPs, src)
	}
	return src == o.Call.LocalAddr.Addr().Unmap()
}

// joins: over HBONE both sides log the same trace; a plain connection keeps the client's address.
func (o *Observation) joins(in telemetry.Record) bool {
	if o.Outbound != nil && o.Outbound.Record.TraceID != "" {
		return in.TraceID == o.Outbound.Record.TraceID
	}
	return o.fromClient(in)
}

// String draws the observation for a failure's message.
func (o *Observation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s: ok=%v status=%d %s %s\n", o.From.PodRef, o.URL, o.Call.OK, o.Call.Status, o.Call.Class, o.Call.Error)
	fmt.Fprintf(&b, "  client %s -> %s\n", o.Call.LocalAddr, o.Call.RemoteAddr)
	if s := o.Call.Seen; s != nil {
		fmt.Fprintf(&b, "  server %s/%s saw %s -> %s\n", s.Namespace, s.Workload, s.RemoteAddr, s.LocalAddr)
	}
	drawEntry(&b, "outbound", o.Outbound)
	drawEntry(&b, "inbound", o.Inbound)
	for _, m := range o.Metrics {
		fmt.Fprintf(&b, "  %s\n", short(m))
	}
	return b.String()
}

func drawEntry(b *strings.Builder, name string, e *telemetry.Entry) {
	if e == nil {
		fmt.Fprintf(b, "  %s: no record\n", name)
		return
	}
	r := e.Record
	fmt.Fprintf(b, "  %s: %s: %s -> %s", name, e.Message, r.Src.Addr, r.Dst.Addr)
	for _, part := range []struct{ name, value string }{
		{"from", r.Src.Identity.String()}, {"to", r.Dst.Identity.String()}, {"flags", r.Flags}, {"error", e.Error}, {"trace", r.TraceID},
	} {
		if part.value != "" {
			fmt.Fprintf(b, " %s %s", part.name, part.value)
		}
	}
	if r.HBONEAddr.IsValid() {
		fmt.Fprintf(b, " hbone %s", r.HBONEAddr)
	}
	b.WriteByte('\n')
}
