// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/reports/schema"
)

// records turns the access logs into edges. A connection that both proxies logged is counted where it began, and what only
// the destination knows, which policy refused it, is taken from there: they are joined by their trace.
func (b *builder) records() {
	inbound := map[string]*telemetry.Entry{}
	began := map[string]bool{} // traces that a source's proxy logged
	for i := range b.ev.Ztunnels {
		for j := range b.ev.Ztunnels[i].Entries {
			e := &b.ev.Ztunnels[i].Entries[j]
			if e.Message == telemetry.MessageOpened {
				continue
			}
			if e.Record.Direction == telemetry.Inbound {
				if e.Record.TraceID != "" {
					inbound[e.Record.TraceID] = e
				}
			} else if e.Record.TraceID != "" {
				began[e.Record.TraceID] = true
			}
		}
	}
	for i := range b.ev.Ztunnels {
		for j := range b.ev.Ztunnels[i].Entries {
			e := &b.ev.Ztunnels[i].Entries[j]
			switch {
			case e.Message == telemetry.MessageOpened:
			case e.Record.Direction == telemetry.Outbound:
				b.outbound(e, inbound[e.Record.TraceID])
			case !began[e.Record.TraceID]:
				b.inbound(e)
			}
		}
	}
}

// outbound counts a connection at its beginning; in is the same one at its end, if that was logged.
func (b *builder) outbound(e, in *telemetry.Entry) {
	r := &e.Record
	to := r.Dst.Addr
	if r.HBONEAddr.IsValid() {
		to = r.HBONEAddr
	}
	id := b.peer(r.Dst.Namespace, r.Dst.Name, to.Addr())
	if in != nil {
		id = b.peer(in.Record.Dst.Namespace, in.Record.Dst.Name, to.Addr())
	}
	k := edgeKey{b.peer(r.Src.Namespace, r.Src.Name, r.Src.Addr.Addr()), id, b.hosts[r.Service], protocolOf(r)}
	policy := r.Policy
	if in != nil && in.Record.Flags == telemetry.FlagDeny {
		k.protocol, policy = schema.GraphDenied, in.Record.Policy
	}
	b.count(k, e, to.Port(), r.BytesSent, r.BytesRecv, policy)
}

// inbound counts a connection whose beginning no proxy logged: its source is not in the mesh. A source that is in it, and
// that sent plain text, was counted there.
func (b *builder) inbound(e *telemetry.Entry) {
	r := &e.Record
	from := b.peer(r.Src.Namespace, r.Src.Name, r.Src.Addr.Addr())
	to := r.Dst.Addr
	if r.HBONEAddr.IsValid() {
		to = r.HBONEAddr
	}
	k := edgeKey{from, b.peer(r.Dst.Namespace, r.Dst.Name, to.Addr()), b.hosts[r.Service], protocolOf(r)}
	if n := b.nodes[from]; n != nil && n.Enrolment == schema.Ambient && k.protocol == schema.GraphPlain {
		return
	}
	b.count(k, e, to.Port(), r.BytesRecv, r.BytesSent, r.Policy)
}

func protocolOf(r *telemetry.Record) schema.GraphProtocol {
	switch {
	case r.Flags == telemetry.FlagDeny:
		return schema.GraphDenied
	case r.HBONEAddr.IsValid() || r.Dst.Addr.Port() == mesh.PortHBONE || !r.Src.Identity.IsZero():
		return schema.GraphHBONE
	}
	return schema.GraphPlain
}

// count adds a connection that ended to its edge. sent is what its source sent.
func (b *builder) count(k edgeKey, e *telemetry.Entry, port uint16, sent, received uint64, policy string) {
	if k.from == "" || k.to == "" {
		return
	}
	r := &e.Record
	g := b.edge(k)
	g.Connections++
	g.BytesSent += sent
	g.BytesReceived += received
	g.see(port, r.Src.Identity, r.Dst.Identity)
	if policy != "" && !slices.Contains(g.Policies, policy) {
		g.Policies = append(g.Policies, policy)
	}
	if e.Error == "" && (r.Flags == "" || r.Flags == telemetry.FlagNone) {
		return
	}
	g.Errors++
	if r.Flags != "" && r.Flags != telemetry.FlagNone {
		if g.Flags == nil {
			g.Flags = map[string]int{}
		}
		g.Flags[r.Flags]++
	}
	if e.Error != "" && !r.Time.Before(g.last) {
		g.LastError, g.last = e.Error, r.Time
	}
}

func (g *edge) see(port uint16, src, dst mesh.Identity) {
	if port != 0 && !slices.Contains(g.Ports, int(port)) {
		g.Ports = append(g.Ports, int(port))
	}
	if !src.IsZero() {
		g.SourceIdentity = src.String()
	}
	if !dst.IsZero() {
		g.DestinationIdentity = dst.String()
	}
}

// open adds the connections that are open now: those that began in the mesh where they began, the others where they end.
func (b *builder) open() {
	for i := range b.ev.Ztunnels {
		for _, s := range b.ev.Ztunnels[i].Dump.WorkloadState {
			self := workloadID(s.Info.Namespace, s.Info.Name)
			for j := range s.Connections.Outbound {
				b.openOutbound(self, &s.Connections.Outbound[j])
			}
			for j := range s.Connections.Inbound {
				b.openInbound(self, &s.Connections.Inbound[j])
			}
		}
	}
}

func (b *builder) openOutbound(self string, c *admin.Connection) {
	to, err := netip.ParseAddrPort(c.ActualDst)
	if err != nil {
		return
	}
	service := b.hosts[c.Service]
	port := to.Port()
	if c.OriginalDst != nil {
		if asked, err := netip.ParseAddrPort(*c.OriginalDst); err == nil && service == "" {
			service = b.serviceAt(asked.Addr())
		}
	}
	b.opened(edgeKey{self, b.at(to.Addr()), service, openProtocol(c)}, c, port, c.BytesSent, c.BytesRecv)
}

func (b *builder) openInbound(self string, c *admin.Connection) {
	src, err := netip.ParseAddrPort(c.Src)
	if err != nil {
		return
	}
	from := b.at(src.Addr())
	if n := b.nodes[from]; n != nil && n.Enrolment == schema.Ambient {
		return
	}
	service := b.hosts[c.Service]
	if c.OriginalDst != nil && service == "" {
		service = b.hosts[*c.OriginalDst]
	}
	port := uint16(0)
	if to, err := netip.ParseAddrPort(c.ActualDst); err == nil {
		port = to.Port()
	}
	b.opened(edgeKey{from, self, service, openProtocol(c)}, c, port, c.BytesRecv, c.BytesSent)
}

func openProtocol(c *admin.Connection) schema.GraphProtocol {
	if c.Protocol == "HBONE" {
		return schema.GraphHBONE
	}
	return schema.GraphPlain
}

func (b *builder) opened(k edgeKey, c *admin.Connection, port uint16, sent, received uint64) {
	if c.Start.After(b.ev.To) {
		return
	}
	if port == mesh.PortHBONE {
		port = 0 // the tunnel's, not the application's
	}
	g := b.edge(k)
	g.Connections++
	g.Open++
	g.BytesSent += sent
	g.BytesReceived += received
	src, _ := mesh.ParseIdentity(c.SrcIdentity) // the zero Identity if there is none
	dst, _ := mesh.ParseIdentity(c.DstIdentity)
	g.see(port, src, dst)
}

func (b *builder) serviceAt(ip netip.Addr) string {
	for _, n := range b.nodes {
		if n.Kind == schema.GraphService && slices.Contains(n.Addresses, ip.String()) {
			return n.ID
		}
	}
	return ""
}

// counters gives each edge that its source's proxy counts by itself what it counted.
func (b *builder) counters() {
	for k, e := range b.edges {
		from, to := b.nodes[k.from], b.nodes[k.to]
		if from == nil || to == nil || from.Enrolment != schema.Ambient || to.Kind != schema.GraphWorkload || k.protocol == schema.GraphDenied {
			continue
		}
		for i := range b.ev.Ztunnels {
			if z := &b.ev.Ztunnels[i]; z.Node == from.Node {
				e.Counted = countersOf(z, b.labels(&z.Dump, from, to, k))
			}
		}
	}
}

// labels tell an edge apart in the metrics, if they do: workloads are called by their owners there.
func (b *builder) labels(d *admin.Dump, from, to *schema.GraphNode, k edgeKey) map[string]string {
	owner := func(n *schema.GraphNode) (string, bool) {
		name, same := "", 0
		for i := range d.Workloads {
			if w := &d.Workloads[i]; w.Namespace == n.Namespace && w.Name == n.Name {
				name = w.WorkloadName
			}
		}
		for i := range d.Workloads {
			if w := &d.Workloads[i]; w.Namespace == n.Namespace && w.WorkloadName == name {
				same++
			}
		}
		return name, name != "" && same == 1
	}
	source, ok1 := owner(from)
	destination, ok2 := owner(to)
	if !ok1 || !ok2 {
		return nil
	}
	labels := map[string]string{
		"reporter": "source", "source_workload": source, "source_workload_namespace": from.Namespace,
		"destination_workload": destination, "destination_workload_namespace": to.Namespace,
		"connection_security_policy": telemetry.SecurityUnknown, "destination_service_name": "unknown",
	}
	if k.protocol == schema.GraphHBONE {
		labels["connection_security_policy"] = telemetry.MutualTLS
	}
	if s := b.nodes[k.service]; s != nil {
		labels["destination_service_name"] = s.Name
	}
	return labels
}

func countersOf(z *Ztunnel, labels map[string]string) *schema.GraphCounters {
	if labels == nil {
		return nil
	}
	sum := func(name string) uint64 { return uint64(z.Samples.Sum("istio_tcp_"+name+"_total", labels)) }
	return &schema.GraphCounters{
		Opened: sum("connections_opened"), Failed: sum("connections_failed"),
		BytesSent: sum("received_bytes"), BytesReceived: sum("sent_bytes"), // at the source these two are of the response and of the request
	}
}

// Window is the time that a graph is of: what entries there are, if no beginning is asked for.
func Window(since, now time.Time, ztunnels []Ztunnel) (from, to time.Time) {
	if !since.IsZero() {
		return since, now
	}
	from = now
	for i := range ztunnels {
		for j := range ztunnels[i].Entries {
			if at := ztunnels[i].Entries[j].Record.Start; !at.IsZero() && at.Before(from) {
				from = at
			}
		}
	}
	return from, now
}
