// SPDX-License-Identifier: Apache-2.0

// Package graph puts together who talked to whom in a lab, from what its proxies say: access logs, open connections and
// counters. It asks nobody and draws nothing: evidence comes in, a document of reports/schema goes out.
package graph

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/reports/schema"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Evidence is what a graph is made of.
type Evidence struct {
	Lab      string
	From, To time.Time // entries are of this window
	Pods     []lab.PodInfo
	External []topologies.External
	Ztunnels []Ztunnel
}

// Ztunnel is what one node's proxy says.
type Ztunnel struct {
	Node    string
	Dump    admin.Dump
	Entries []telemetry.Entry
	Samples lab.Samples
}

const meshNamespace = "istio-system"

// Build makes the graph.
func Build(ev Evidence) *schema.Graph {
	b := &builder{ev: ev, byIP: map[netip.Addr]string{}, nodes: map[string]*schema.GraphNode{}, hosts: map[string]string{}, edges: map[edgeKey]*edge{}}
	b.workloads()
	b.external()
	b.services()
	b.records()
	b.open()
	b.counters()
	return b.graph()
}

type builder struct {
	ev    Evidence
	byIP  map[netip.Addr]string // ids of workloads and hosts
	nodes map[string]*schema.GraphNode
	hosts map[string]string // service ids by host name
	edges map[edgeKey]*edge
}

type edgeKey struct {
	from, to, service string
	protocol          schema.GraphProtocol
}

type edge struct {
	schema.GraphEdge
	last time.Time // of LastError
}

func workloadID(ns, name string) string { return "workload/" + ns + "/" + name }

func (b *builder) workloads() {
	known := map[string]*admin.Workload{}
	state := map[string]string{}
	for i := range b.ev.Ztunnels {
		d := &b.ev.Ztunnels[i].Dump
		for j := range d.Workloads {
			known[d.Workloads[j].Namespace+"/"+d.Workloads[j].Name] = &d.Workloads[j]
		}
		for _, s := range d.WorkloadState {
			state[s.Info.Namespace+"/"+s.Info.Name] = s.State
		}
	}
	for _, p := range b.ev.Pods {
		n := &schema.GraphNode{ID: workloadID(p.Namespace, p.Name), Kind: schema.GraphWorkload, Namespace: p.Namespace, Name: p.Name, Node: p.Node}
		for _, ip := range p.IPs {
			n.Addresses = append(n.Addresses, ip.String())
			b.byIP[ip] = n.ID
		}
		w := known[p.String()]
		switch {
		case p.Namespace == meshNamespace:
			n.Enrolment = schema.MeshPart
		case state[p.String()] == "Up":
			n.Enrolment = schema.Ambient
		case p.Enrolled || state[p.String()] != "" || w != nil && w.Protocol == "HBONE":
			n.Enrolment = schema.Pending
		default:
			n.Enrolment = schema.Outside
		}
		if w != nil && n.Enrolment == schema.Ambient {
			n.Identity = mesh.Identity{
				TrustDomain: cmp.Or(w.TrustDomain, "cluster.local"), Namespace: w.Namespace, ServiceAccount: cmp.Or(w.ServiceAccount, "default"),
			}.String()
		}
		b.nodes[n.ID] = n
	}
}

func (b *builder) services() {
	for i := range b.ev.Ztunnels {
		d := &b.ev.Ztunnels[i].Dump
		for j := range d.Services {
			s := &d.Services[j]
			id := "service/" + s.Namespace + "/" + s.Name
			b.hosts[s.Hostname] = id
			if b.nodes[id] != nil {
				continue
			}
			n := &schema.GraphNode{ID: id, Kind: schema.GraphService, Namespace: s.Namespace, Name: s.Name}
			for _, v := range s.VIPs {
				_, ip, _ := strings.Cut(v, "/")
				n.Addresses = append(n.Addresses, ip)
			}
			n.Endpoints = b.endpoints(d, s)
			b.nodes[id] = n
		}
	}
}

// endpoints are the pods behind a service, and the hosts: those are workloads of the mesh by their addresses alone.
func (b *builder) endpoints(d *admin.Dump, s *admin.Service) []string {
	var ids []string
	for i := range d.Workloads {
		w := &d.Workloads[i]
		if _, ok := s.Endpoints[w.UID]; !ok {
			continue
		}
		if id := workloadID(w.Namespace, w.Name); b.nodes[id] != nil {
			ids = append(ids, id)
			continue
		}
		for _, text := range w.WorkloadIPs {
			if ip, err := netip.ParseAddr(text); err == nil {
				ids = append(ids, b.at(ip))
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (b *builder) external() {
	for _, e := range b.ev.External {
		n := &schema.GraphNode{ID: "external/" + e.Name, Kind: schema.GraphExternal, Name: e.Name}
		for _, ip := range e.Addresses {
			n.Addresses = append(n.Addresses, ip.String())
			b.byIP[ip] = n.ID
		}
		b.nodes[n.ID] = n
	}
}

// at is the node that has an address; hosts that nobody knows become nodes by their address.
func (b *builder) at(ip netip.Addr) string {
	ip = ip.Unmap()
	if id := b.byIP[ip]; id != "" {
		return id
	}
	if !ip.IsValid() {
		return ""
	}
	id := "external/" + ip.String()
	b.byIP[ip] = id
	b.nodes[id] = &schema.GraphNode{ID: id, Kind: schema.GraphExternal, Name: ip.String(), Addresses: []string{ip.String()}}
	return id
}

// peer is the node that a record's end is: by the name that the proxy gave it, or by its address.
func (b *builder) peer(ns, name string, ip netip.Addr) string {
	if id := workloadID(ns, name); name != "" && b.nodes[id] != nil {
		return id
	}
	return b.at(ip)
}

func (b *builder) edge(k edgeKey) *edge {
	e := b.edges[k]
	if e == nil {
		e = &edge{GraphEdge: schema.GraphEdge{From: k.from, To: k.to, Service: k.service, Protocol: k.protocol, Ports: []int{}}}
		b.edges[k] = e
	}
	return e
}

func (b *builder) graph() *schema.Graph {
	g := &schema.Graph{Lab: b.ev.Lab, From: b.ev.From, To: b.ev.To, Nodes: []schema.GraphNode{}, Edges: []schema.GraphEdge{}}
	seconds := b.ev.To.Sub(b.ev.From).Seconds()
	for _, e := range b.edges {
		if seconds > 0 {
			e.RatePerSecond = float64(e.Connections) / seconds
		}
		slices.Sort(e.Ports)
		slices.Sort(e.Policies)
		g.Edges = append(g.Edges, e.GraphEdge)
	}
	for _, n := range b.nodes {
		g.Nodes = append(g.Nodes, *n)
	}
	order := map[schema.GraphKind]int{schema.GraphWorkload: 0, schema.GraphService: 1, schema.GraphExternal: 2}
	slices.SortFunc(g.Nodes, func(x, y schema.GraphNode) int {
		return cmp.Or(cmp.Compare(order[x.Kind], order[y.Kind]), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	slices.SortFunc(g.Edges, func(x, y schema.GraphEdge) int {
		return cmp.Or(cmp.Compare(x.From, y.From), cmp.Compare(x.To, y.To), cmp.Compare(x.Service, y.Service), cmp.Compare(x.Protocol, y.Protocol))
	})
	return g
}
