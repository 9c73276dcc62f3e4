// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// TraceWait is how long Trace waits for proxies to log a connection that has ended.
const TraceWait = 2 * time.Second

// Trace is one call and every hop that it took, put together from what the caller, the proxies and the server say.
type Trace struct {
	URL  string        `json:"url"`
	Call workload.Call `json:"call"`
	Hops []Hop         `json:"hops"` // the caller first, the server last if it was reached
	Legs []Leg         `json:"legs"` // Legs[i] is between Hops[i] and Hops[i+1]; a last one may lead nowhere; none if the name has no address
	// Missing says what should have been logged and was not: the trace is incomplete then.
	Missing []string `json:"missing,omitempty"`
}

// Role is what a hop does in a call.
type Role string

// Roles.
const (
	RoleClient   Role = "client"
	RoleOutbound Role = "outbound" // the proxy of the client's node
	RoleInbound  Role = "inbound"  // the proxy of the server's node
	RoleServer   Role = "server"
)

// Hop is one process on the way.
type Hop struct {
	Role     Role          `json:"role"`
	Name     string        `json:"name"` // "shop/web" for a pod, "ztunnel" for a proxy, an address for a host
	Node     string        `json:"node,omitempty"`
	Start    time.Time     `json:"start,omitzero"`
	Duration time.Duration `json:"durationNs,omitempty"`

	// What a proxy logged.
	Service   string `json:"service,omitempty"`
	TraceID   string `json:"traceId,omitempty"`
	BytesSent uint64 `json:"bytesSent,omitempty"`
	BytesRecv uint64 `json:"bytesRecv,omitempty"`
	Flags     string `json:"flags,omitempty"`
	Policy    string `json:"policy,omitempty"`
	Error     string `json:"error,omitempty"`
}

// Protocol is what a leg speaks on the wire.
type Protocol string

// Protocols. What is inside a TCP connection is the application's.
const (
	ProtoTCP   Protocol = "TCP"
	ProtoUDP   Protocol = "UDP"
	ProtoHBONE Protocol = "HBONE" // HTTP/2 CONNECT in mutual TLS
)

// Leg is the connection between two hops.
type Leg struct {
	Protocol    Protocol       `json:"protocol"`
	Src         netip.AddrPort `json:"src,omitzero"`
	Dst         netip.AddrPort `json:"dst"`
	Translated  netip.AddrPort `json:"translated,omitzero"` // where the kernel sent it instead of Dst
	Authority   string         `json:"authority,omitempty"` // of the CONNECT request
	SrcIdentity string         `json:"srcIdentity,omitempty"`
	DstIdentity string         `json:"dstIdentity,omitempty"`
}

// arrivesAt notes that the other end of the leg is not where it was sent to: the kernel translated a service's address.
func (l *Leg) arrivesAt(at netip.AddrPort) {
	if l.Protocol != ProtoHBONE && at.IsValid() && !at.Addr().IsUnspecified() && at != l.Dst {
		l.Translated = at
	}
}

// Hop finds the hop with a role.
func (t *Trace) Hop(r Role) (Hop, bool) {
	for _, h := range t.Hops {
		if h.Role == r {
			return h, true
		}
	}
	return Hop{}, false
}

// Trace makes one call from a pod and follows it. A call that failed is no error, nor is an incomplete trace: see
// Call.OK and Missing.
func (l *Lab) Trace(ctx context.Context, from PodRef, url string, o workload.Options) (*Trace, error) {
	caller, err := l.Find(ctx, from)
	if err != nil {
		return nil, err
	}
	o.Count, o.Duration = 1, 0
	began := time.Now()
	res, err := l.Call(ctx, caller.PodRef, url, o)
	if err != nil {
		return nil, err
	}
	pods, err := l.Pods(ctx)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	a := &assembly{
		call: res.First(), caller: caller, pods: pods, udp: strings.HasPrefix(url, "udp:"),
		log: &proxyLogs{lab: l, nodes: l.Nodes(), since: began.Add(-time.Millisecond)},
	}
	if err := a.follow(ctx); err != nil {
		return nil, err
	}
	t := a.trace()
	t.URL = url
	return t, nil
}

// assembly is a trace in the making.
type assembly struct {
	call   workload.Call
	caller PodInfo
	pods   []PodInfo
	udp    bool
	log    *proxyLogs

	out, in *proxyEntry
	missing []string
}

// follow waits for the records that must come. The caller's local address names the outbound connection; a tunnel's
// trace id, or on a plain connection the address that it came from, names the inbound one.
func (a *assembly) follow(ctx context.Context) error {
	if a.udp || !a.call.LocalAddr.IsValid() { // not captured; or never connected
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, TraceWait)
	defer cancel()
	var err error
	if a.caller.Enrolled && !a.local(a.call.RemoteAddr.Addr()) {
		a.out, err = a.log.find(ctx, func(e *proxyEntry) bool {
			return e.Record.Direction == telemetry.Outbound && a.fromCaller(e.Record)
		})
		if err != nil {
			return err
		}
		if a.out == nil {
			a.miss("the ztunnel of %s logged no outbound connection from %s", a.caller.Node, a.call.LocalAddr)
		}
	}
	want, what := a.inbound()
	if want == nil {
		return nil
	}
	if a.in, err = a.log.find(ctx, want); err != nil {
		return err
	}
	if a.in == nil {
		a.miss("no ztunnel logged %s", what)
	}
	return nil
}

// fromCaller: the caller's address and port name the connection. Where an older connection's tuple still stands in the
// way, netfilter's REDIRECT gives it another source port; then its time and where it led must do.
func (a *assembly) fromCaller(r telemetry.Record) bool {
	if r.Src.Addr == a.call.LocalAddr {
		return true
	}
	return r.Src.Addr.Addr() == a.call.LocalAddr.Addr() && a.during(r) && a.leadsTo(r)
}

func (a *assembly) during(r telemetry.Record) bool {
	return !r.Start.Before(a.call.Start) && !r.Start.After(a.call.Start.Add(a.call.Latency))
}

func (a *assembly) leadsTo(r telemetry.Record) bool {
	if a.call.Seen != nil {
		return r.HBONEAddr == a.call.Seen.LocalAddr || r.Dst.Addr == a.call.Seen.LocalAddr
	}
	return r.HBONEAddr == a.call.RemoteAddr || r.Dst.Addr == a.call.RemoteAddr
}

func (a *assembly) miss(format string, args ...any) {
	a.missing = append(a.missing, fmt.Sprintf(format, args...)+" within "+TraceWait.String())
}

// local reports whether traffic to ip never leaves the caller's pod.
func (a *assembly) local(ip netip.Addr) bool {
	return ip.IsLoopback() || slices.Contains(a.caller.IPs, ip)
}

// inbound says which inbound record belongs to the call; nil if there can be none.
func (a *assembly) inbound() (match func(*proxyEntry) bool, what string) {
	if a.out != nil && tunnelled(a.out) {
		if a.out.Message == telemetry.MessageFailed && a.out.Record.Src.Identity.IsZero() {
			return nil, "" // no peer ever answered
		}
		id := a.out.Record.TraceID
		return func(e *proxyEntry) bool {
			return e.Record.Direction == telemetry.Inbound && e.Record.TraceID == id
		}, "an inbound connection of trace " + id
	}
	src, dst := a.call.LocalAddr, a.call.RemoteAddr.Addr()
	switch {
	case a.out != nil:
		src, dst = a.out.Record.Upstream, a.out.Record.Dst.Addr.Addr() // src is invalid if it never connected
	case a.caller.Enrolled:
		return nil, "" // its own pod, or a record that is missing already
	case a.call.Seen != nil:
		dst = a.call.Seen.LocalAddr.Addr() // behind a service's address
	}
	if p, ok := a.podOf(dst); !ok || !p.Enrolled || !src.IsValid() {
		return nil, ""
	}
	return func(e *proxyEntry) bool {
		r := e.Record
		return r.Direction == telemetry.Inbound && (r.Src.Addr == src || r.Src.Addr.Addr() == src.Addr() && a.during(r) && a.leadsTo(r))
	}, "an inbound connection from " + src.String()
}

func (a *assembly) podOf(ip netip.Addr) (PodInfo, bool) {
	for _, p := range a.pods {
		if slices.Contains(p.IPs, ip) {
			return p, true
		}
	}
	return PodInfo{}, false
}

func tunnelled(e *proxyEntry) bool {
	return e.Record.HBONEAddr.IsValid() || e.Record.Dst.Addr.Port() == mesh.PortHBONE
}

// trace lays the pieces in a row.
func (a *assembly) trace() *Trace {
	t := &Trace{Call: a.call, Missing: a.missing}
	t.Hops = []Hop{{Role: RoleClient, Name: a.caller.String(), Node: a.caller.Node, Start: a.call.Start, Duration: a.call.Latency}}
	t.Legs = []Leg{}
	if !a.call.RemoteAddr.IsValid() {
		return t // the caller never knew where to
	}
	t.Legs = append(t.Legs, Leg{Protocol: ProtoTCP, Src: a.call.LocalAddr, Dst: a.call.RemoteAddr})
	if a.udp {
		t.Legs[0].Protocol = ProtoUDP
	}
	if a.out != nil {
		leg := a.out.leg()
		if !leg.Src.IsValid() && a.in != nil {
			leg.Src = a.in.Record.Src.Addr // refused, but the peer saw where from
		}
		t.Hops, t.Legs = append(t.Hops, a.out.hop(RoleOutbound)), append(t.Legs, leg)
	}
	if a.in != nil {
		t.Legs[len(t.Legs)-1].arrivesAt(a.in.Record.Dst.Addr)
		t.Hops = append(t.Hops, a.in.hop(RoleInbound))
		if a.in.Record.Upstream.IsValid() || a.in.Record.Flags == telemetry.FlagConnect {
			t.Legs = append(t.Legs, a.in.leg())
		}
	}
	a.server(t)
	return t
}

// answeredBy is the server that reported of itself. Its socket's address tells nothing on loopback or a UDP wildcard; the
// pod's own does.
func (a *assembly) answeredBy(seen *workload.Seen) Hop {
	ref := PodRef{seen.Namespace, seen.Workload}
	h := Hop{Role: RoleServer, Name: ref.String()}
	if seen.Namespace == "" {
		h.Name = seen.Workload
	}
	ip, _ := netip.ParseAddr(seen.IP) // the zero Addr is no pod's
	for _, p := range a.pods {
		if slices.Contains(p.IPs, seen.LocalAddr.Addr()) || slices.Contains(p.IPs, ip) || p.PodRef == ref {
			h.Name, h.Node = p.String(), p.Node
			break
		}
	}
	return h
}

// server adds who answered, if anybody did.
func (a *assembly) server(t *Trace) {
	last := &t.Legs[len(t.Legs)-1]
	if len(t.Legs) < len(t.Hops) {
		return // the last proxy went no further
	}
	seen := a.call.Seen
	switch {
	case seen != nil && seen.Workload != "":
		t.Hops = append(t.Hops, a.answeredBy(seen))
		last.arrivesAt(seen.LocalAddr)
	case a.call.OK || a.call.BytesRecv > 0 || a.call.Status > 0:
		h := Hop{Role: RoleServer, Name: last.Dst.Addr().String()}
		if p, ok := a.podOf(last.Dst.Addr()); ok {
			h.Name, h.Node = p.String(), p.Node
		}
		t.Hops = append(t.Hops, h)
	}
}
