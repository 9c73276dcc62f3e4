// SPDX-License-Identifier: Apache-2.0

// Package expect says in Gomega's language what must be true of a call: which path it took, who was seen, what was
// logged and counted. A matcher checks everything it knows and names every point that does not hold. It makes no call
// and waits for nothing: package world gathers the observation that is judged here.
package expect

import (
	"fmt"
	"strings"

	"github.com/onsi/gomega/types"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// trustDomain is that of every topology in the catalogue.
const trustDomain = mesh.DefaultTrustDomain

// Identity is the SPIFFE identity that a pod must have.
func Identity(p lab.PodInfo) mesh.Identity {
	return mesh.Identity{TrustDomain: trustDomain, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}
}

// path judges an observation; it returns one sentence per point that does not hold.
type path struct {
	name  string
	check func(*world.Observation) []string
	found []string
}

// Match implements types.GomegaMatcher.
func (m *path) Match(actual any) (bool, error) {
	o, ok := actual.(*world.Observation)
	if !ok || o == nil {
		return false, fmt.Errorf("%s judges a *world.Observation, not %T", m.name, actual)
	}
	m.found = m.check(o)
	return len(m.found) == 0, nil
}

// FailureMessage implements types.GomegaMatcher.
func (m *path) FailureMessage(actual any) string {
	return fmt.Sprintf("expected a call %s, but:\n  - %s\n%s", m.name, strings.Join(m.found, "\n  - "), actual)
}

// NegatedFailureMessage implements types.GomegaMatcher.
func (m *path) NegatedFailureMessage(actual any) string {
	return fmt.Sprintf("expected anything but a call %s\n%s", m.name, actual)
}

// points collects what does not hold.
type points []string

func (p *points) check(ok bool, format string, args ...any) {
	if !ok {
		*p = append(*p, fmt.Sprintf(format, args...))
	}
}

func (p *points) equal(what string, got, want any) {
	p.check(got == want, "%s is %v, want %v", what, got, want)
}

// Tunnelled accepts an answered call that went through both ztunnels over HBONE: mutual TLS with the identities of both
// pods on both sides, one trace, the client's address preserved, one connection counted by each reporter.
func Tunnelled() types.GomegaMatcher {
	return &path{name: "tunnelled over HBONE", check: func(o *world.Observation) []string {
		var p points
		p.answered(o)
		if o.Outbound == nil || o.Inbound == nil {
			p.check(o.Outbound != nil, "the client's ztunnel logged nothing")
			p.check(o.Inbound != nil, "the server's ztunnel logged nothing")
			return p
		}
		out, in := o.Outbound.Record, o.Inbound.Record
		p.equal("the outbound record's message", o.Outbound.Message, telemetry.MessageComplete)
		p.equal("the outbound record's source", out.Src.Addr.Addr().Unmap(), o.Call.LocalAddr.Addr().Unmap())
		p.equal("the tunnel's port", out.Dst.Addr.Port(), mesh.PortHBONE)
		p.check(out.HBONEAddr.IsValid(), "the outbound record has no HBONE address")
		p.equal("the inbound record's HBONE address", in.HBONEAddr, out.HBONEAddr)
		p.check(out.TraceID != "" && out.TraceID == in.TraceID, "traces differ: %q outbound, %q inbound", out.TraceID, in.TraceID)
		for side, r := range map[string]telemetry.Record{"outbound": out, "inbound": in} {
			p.equal("the "+side+" record's source identity", r.Src.Identity, Identity(o.From))
			p.equal("the "+side+" record's destination identity", r.Dst.Identity, Identity(o.To))
			p.equal("the "+side+" record's source", r.Src.Name, o.From.Name)
			p.equal("the "+side+" record's destination", r.Dst.Name, o.To.Name)
		}
		p.sourcePreserved(o)
		for _, reporter := range []string{"source", "destination"} {
			p.counted(o, reporter, map[string]string{
				"connection_security_policy": telemetry.MutualTLS,
				"source_principal":           Identity(o.From).String(), "destination_principal": Identity(o.To).String(),
			})
		}
		return p
	}}
}

// PlainInbound accepts an answered call from outside the mesh that the server's ztunnel passed on: no identity, the
// client's address preserved, one connection counted at the destination and none at the source.
func PlainInbound() types.GomegaMatcher {
	return &path{name: "in plain text through the server's ztunnel", check: func(o *world.Observation) []string {
		var p points
		p.answered(o)
		p.check(o.Outbound == nil, "a ztunnel logged an outbound connection")
		p.none(o, "source")
		if o.Inbound == nil {
			p.check(false, "the server's ztunnel logged nothing")
			return p
		}
		in := o.Inbound.Record
		p.equal("the inbound record's message", o.Inbound.Message, telemetry.MessageComplete)
		p.equal("the inbound record's source", in.Src.Addr.Addr().Unmap(), o.Call.LocalAddr.Addr().Unmap())
		p.check(in.Src.Identity.IsZero(), "the record has a source identity, %s", in.Src.Identity)
		p.equal("the inbound record's destination", in.Dst.Name, o.To.Name)
		p.sourcePreserved(o)
		p.counted(o, "destination", map[string]string{
			"connection_security_policy": telemetry.SecurityUnknown, "source_principal": "unknown",
		})
		return p
	}}
}

// PlainOutbound accepts an answered call that left the mesh: the client's ztunnel passed it on without identity, from the
// pod's own address, and no other ztunnel saw it.
func PlainOutbound() types.GomegaMatcher {
	return &path{name: "in plain text through the client's ztunnel", check: func(o *world.Observation) []string {
		var p points
		p.check(o.Call.OK, "the call failed: %s %s", o.Call.Class, o.Call.Error)
		p.check(o.Inbound == nil, "a ztunnel logged an inbound connection")
		p.none(o, "destination")
		if o.Outbound == nil {
			p.check(false, "the client's ztunnel logged nothing")
			return p
		}
		out := o.Outbound.Record
		p.equal("the outbound record's message", o.Outbound.Message, telemetry.MessageComplete)
		p.equal("the outbound record's source", out.Src.Addr.Addr().Unmap(), o.Call.LocalAddr.Addr().Unmap())
		p.check(!out.HBONEAddr.IsValid(), "the record has an HBONE address, %s", out.HBONEAddr)
		p.check(out.Dst.Identity.IsZero(), "the record has a destination identity, %s", out.Dst.Identity)
		p.check(out.Dst.Addr.Port() != mesh.PortHBONE, "the call went to port %d", mesh.PortHBONE)
		p.sourcePreserved(o)
		p.counted(o, "source", map[string]string{"connection_security_policy": telemetry.SecurityUnknown})
		return p
	}}
}

// Direct accepts an answered call that no ztunnel took part in.
func Direct() types.GomegaMatcher {
	return &path{name: "past every ztunnel", check: func(o *world.Observation) []string {
		var p points
		p.answered(o)
		p.check(o.Outbound == nil, "a ztunnel logged an outbound connection")
		p.check(o.Inbound == nil, "a ztunnel logged an inbound connection")
		p.none(o, "source")
		p.none(o, "destination")
		p.sourcePreserved(o)
		return p
	}}
}

// Loopback accepts an answered call of a pod to itself over the loopback device, which capture leaves alone.
func Loopback() types.GomegaMatcher {
	return &path{name: "over loopback", check: func(o *world.Observation) []string {
		var p points
		p.answered(o)
		p.none(o, "source")
		p.none(o, "destination")
		p.check(o.Call.RemoteAddr.Addr().IsLoopback(), "the call went to %s", o.Call.RemoteAddr)
		return p
	}}
}

func (p *points) answered(o *world.Observation) {
	p.check(o.Call.OK, "the call failed: %s %s", o.Call.Class, o.Call.Error)
	p.check(o.Call.Seen != nil, "the server did not say what it saw")
	p.check(o.To.Name != "", "no pod of the lab answered")
}

// sourcePreserved: the application must see the client's own address; its port may differ, a proxy opens its own socket. What
// leaves the cluster has its node's address where the cluster's CNI says so.
func (p *points) sourcePreserved(o *world.Observation) {
	if o.Call.Seen == nil || o.To.Namespace == "" {
		return
	}
	seen := o.Call.Seen.RemoteAddr.Addr().Unmap()
	for _, ip := range o.From.IPs {
		if ip == seen {
			return
		}
	}
	p.check(false, "the server saw the client as %s, which is none of %v", seen, o.From.IPs)
}

// counted: exactly one connection opened and closed by the reporter, and it has the labels.
func (p *points) counted(o *world.Observation, reporter string, labels map[string]string) {
	want := map[string]string{"reporter": reporter, "response_flags": telemetry.FlagNone}
	for k, v := range labels {
		want[k] = v
	}
	for _, name := range []string{world.Opened, world.Closed} {
		p.equal(fmt.Sprintf("the growth of %s%v", name, want), o.Metrics.Sum(name, want), 1.0)
		p.equal(fmt.Sprintf("the growth of %s by reporter %s", name, reporter), o.Metrics.Sum(name, map[string]string{"reporter": reporter}), 1.0)
	}
}

func (p *points) none(o *world.Observation, reporter string) {
	by := map[string]string{"reporter": reporter}
	p.equal("connections opened, by reporter "+reporter, o.Metrics.Sum(world.Opened, by), 0.0)
	p.equal("connections failed, by reporter "+reporter, o.Metrics.Sum(world.Failed, by), 0.0)
}
