// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/reports/schema"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

const td = "spiffe://cluster.local/ns/shop/sa/"

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func id(sa string) mesh.Identity {
	return mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: sa}
}

// evidence is of web (10.0.0.1, node1), cart (10.0.1.1, node2), which are enrolled, and batch (10.0.0.9, node1), which is not.
func evidence() Evidence {
	pod := func(ns, name, node, ip string, enrolled bool) lab.PodInfo {
		return lab.PodInfo{PodRef: lab.PodRef{Namespace: ns, Name: name}, Node: node, IPs: []netip.Addr{netip.MustParseAddr(ip)}, Enrolled: enrolled, Ready: true}
	}
	dump := admin.Dump{
		Workloads: []admin.Workload{
			{UID: "web", Namespace: "shop", Name: "web", WorkloadName: "web", ServiceAccount: "web", Protocol: "HBONE", WorkloadIPs: []string{"10.0.0.1"}},
			{UID: "cart", Namespace: "shop", Name: "cart", WorkloadName: "cart", ServiceAccount: "cart", Protocol: "HBONE", WorkloadIPs: []string{"10.0.1.1"}},
			{UID: "db", Namespace: "shop", Name: "db-entry", WorkloadIPs: []string{"198.51.100.2"}},
		},
		Services: []admin.Service{
			{Namespace: "shop", Name: "cart", Hostname: "cart.shop.svc", VIPs: []string{"/10.96.0.1"}, Endpoints: admin.Map[admin.Endpoint]{"cart": {}}},
			{Namespace: "shop", Name: "db", Hostname: "db.shop.svc", Endpoints: admin.Map[admin.Endpoint]{"db": {}, "gone": {}}},
		},
	}
	up := func(name string) admin.Map[admin.WorkloadState] {
		return admin.Map[admin.WorkloadState]{name: {State: "Up", Info: admin.WorkloadInfo{Namespace: "shop", Name: name}}}
	}
	one, two := dump, dump
	one.WorkloadState, two.WorkloadState = up("web"), up("cart")
	return Evidence{
		Lab: "two", From: noon, To: noon.Add(10 * time.Second),
		Pods: []lab.PodInfo{
			pod("shop", "web", "node1", "10.0.0.1", true), pod("shop", "cart", "node2", "10.0.1.1", true), pod("plain", "batch", "node1", "10.0.0.9", false),
			pod("istio-system", "istiod", "node1", "10.0.0.3", false), pod("shop", "late", "node1", "10.0.0.8", true),
		},
		External: []topologies.External{{Name: "database", Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.2")}}},
		Ztunnels: []Ztunnel{{Node: "node1", Dump: one}, {Node: "node2", Dump: two}},
	}
}

func (ev *Evidence) log(ztunnel int, message, err string, r telemetry.Record) {
	r.Time = noon.Add(time.Duration(len(ev.Ztunnels[ztunnel].Entries)) * time.Second)
	ev.Ztunnels[ztunnel].Entries = append(ev.Ztunnels[ztunnel].Entries, telemetry.Entry{Message: message, Error: err, Record: r})
}

var (
	web  = telemetry.Peer{Addr: at("10.0.0.1:40000"), Namespace: "shop", Name: "web", Identity: id("web")}
	cart = telemetry.Peer{Addr: at("10.0.1.1:15008"), Namespace: "shop", Name: "cart", Identity: id("cart")}
)

// tunnelled is a connection of web to cart as both proxies log it.
func (ev *Evidence) tunnelled(trace, flags, policy, err string) {
	out := telemetry.Record{Direction: telemetry.Outbound, Src: web, Dst: cart, HBONEAddr: at("10.0.1.1:8080"), Service: "cart.shop.svc", TraceID: trace, BytesSent: 10, BytesRecv: 30}
	in := out
	in.Direction, in.BytesSent, in.BytesRecv, in.Flags, in.Policy = telemetry.Inbound, 30, 10, flags, policy
	if flags != "" {
		out.Flags = telemetry.FlagConnect
	}
	ev.log(0, telemetry.MessageComplete, err, out)
	ev.log(1, telemetry.MessageComplete, err, in)
}

func edges(t *testing.T, ev Evidence) []schema.GraphEdge {
	t.Helper()
	return Build(ev).Edges
}

// A connection that two proxies logged is one; what a proxy only saw opening is none yet.
func TestTunnelsAreCountedOnce(t *testing.T) {
	ev := evidence()
	ev.tunnelled("t1", "", "", "")
	ev.tunnelled("t2", "", "", "")
	ev.log(0, telemetry.MessageOpened, "", telemetry.Record{Direction: telemetry.Outbound, Src: web, Dst: cart, TraceID: "t3"})
	ev.Ztunnels[0].Samples = lab.Samples{
		{Name: "istio_tcp_connections_opened_total", Value: 7, Labels: map[string]string{
			"reporter": "source", "source_workload": "web", "source_workload_namespace": "shop", "destination_workload": "cart",
			"destination_workload_namespace": "shop", "connection_security_policy": "mutual_tls", "destination_service_name": "cart"}},
		{Name: "istio_tcp_connections_opened_total", Value: 100, Labels: map[string]string{"reporter": "destination"}},
	}
	want := []schema.GraphEdge{{
		From: "workload/shop/web", To: "workload/shop/cart", Service: "service/shop/cart", Protocol: schema.GraphHBONE, Ports: []int{8080},
		SourceIdentity: td + "web", DestinationIdentity: td + "cart", Connections: 2, RatePerSecond: 0.2, BytesSent: 20, BytesReceived: 60,
		Counted: &schema.GraphCounters{Opened: 7},
	}}
	if diff := cmp.Diff(want, edges(t, ev)); diff != "" {
		t.Errorf("edges (-want +got):\n%s", diff)
	}
}

// Which policy refused a connection, only its destination knows.
func TestDenials(t *testing.T) {
	ev := evidence()
	ev.tunnelled("t1", telemetry.FlagDeny, "shop/strict", "refused: 401")
	batch := telemetry.Peer{Addr: at("10.0.0.9:1")}
	plain := telemetry.Peer{Addr: at("10.0.1.1:8080"), Namespace: "shop", Name: "cart"}
	ev.log(1, telemetry.MessageFailed, "denied", telemetry.Record{Direction: telemetry.Inbound, Src: batch, Dst: plain, Flags: telemetry.FlagDeny, Policy: "shop/strict"})
	ev.log(1, telemetry.MessageComplete, "", telemetry.Record{Direction: telemetry.Inbound, Src: batch, Dst: plain, BytesSent: 5, BytesRecv: 3})
	want := []schema.GraphEdge{
		{From: "workload/plain/batch", To: "workload/shop/cart", Protocol: schema.GraphDenied, Ports: []int{8080}, Connections: 1, RatePerSecond: 0.1, Errors: 1,
			Flags: map[string]int{"DENY": 1}, LastError: "denied", Policies: []string{"shop/strict"}},
		{From: "workload/plain/batch", To: "workload/shop/cart", Protocol: schema.GraphPlain, Ports: []int{8080}, Connections: 1, RatePerSecond: 0.1, BytesSent: 3, BytesReceived: 5},
		{From: "workload/shop/web", To: "workload/shop/cart", Service: "service/shop/cart", Protocol: schema.GraphDenied, Ports: []int{8080}, Connections: 1, RatePerSecond: 0.1,
			BytesSent: 10, BytesReceived: 30, SourceIdentity: td + "web", DestinationIdentity: td + "cart", Errors: 1, Flags: map[string]int{"CONNECT": 1},
			LastError: "refused: 401", Policies: []string{"shop/strict"}},
	}
	if diff := cmp.Diff(want, edges(t, ev)); diff != "" {
		t.Errorf("edges (-want +got):\n%s", diff)
	}
}

// What leaves the mesh goes to a host; plain text from a pod of the mesh is counted where it began.
func TestPlainText(t *testing.T) {
	ev := evidence()
	source := web
	source.Identity = mesh.Identity{}
	ev.log(0, telemetry.MessageComplete, "", telemetry.Record{Direction: telemetry.Outbound, Src: source, Dst: telemetry.Peer{Addr: at("203.0.113.80:80")}, BytesSent: 1})
	ev.log(0, telemetry.MessageComplete, "", telemetry.Record{Direction: telemetry.Outbound, Src: source, Dst: telemetry.Peer{Addr: at("198.51.100.2:5432")}})
	ev.log(0, telemetry.MessageComplete, "", telemetry.Record{Direction: telemetry.Outbound, Src: source, Dst: telemetry.Peer{Addr: at("10.0.1.1:8080")}})
	ev.log(1, telemetry.MessageComplete, "", telemetry.Record{Direction: telemetry.Inbound, Src: telemetry.Peer{Addr: at("10.0.0.1:50000")}, Dst: telemetry.Peer{Addr: at("10.0.1.1:8080")}})
	var got []string
	for _, e := range edges(t, ev) {
		got = append(got, e.From+" "+string(e.Protocol)+" "+e.To)
	}
	want := []string{"workload/shop/web plain external/203.0.113.80", "workload/shop/web plain external/database", "workload/shop/web plain workload/shop/cart"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("edges (-want +got):\n%s", diff)
	}
}

func TestOpenConnections(t *testing.T) {
	ev := evidence()
	vip, host := "10.96.0.1:80", "cart.shop.svc"
	put := func(z int, name string, c admin.Connections) {
		s := ev.Ztunnels[z].Dump.WorkloadState[name]
		s.Connections = c
		ev.Ztunnels[z].Dump.WorkloadState[name] = s
	}
	put(0, "web", admin.Connections{Outbound: []admin.Connection{
		{Src: "10.0.0.1:1", OriginalDst: &vip, ActualDst: "10.0.1.1:15008", Protocol: "HBONE", BytesSent: 4, BytesRecv: 6, SrcIdentity: td + "web", DstIdentity: td + "cart", Start: noon},
	}})
	put(1, "cart", admin.Connections{Inbound: []admin.Connection{
		{Src: "10.0.0.1:2", OriginalDst: &host, ActualDst: "10.0.1.1:8080", Protocol: "HBONE", BytesSent: 6, BytesRecv: 4},
		{Src: "10.0.0.9:3", OriginalDst: &host, ActualDst: "10.0.1.1:8080", Protocol: "TCP", BytesSent: 2, BytesRecv: 1},
	}})
	want := []schema.GraphEdge{
		{From: "workload/plain/batch", To: "workload/shop/cart", Service: "service/shop/cart", Protocol: schema.GraphPlain, Ports: []int{8080}, Connections: 1, Open: 1, RatePerSecond: 0.1, BytesSent: 1, BytesReceived: 2},
		{From: "workload/shop/web", To: "workload/shop/cart", Service: "service/shop/cart", Protocol: schema.GraphHBONE, Ports: []int{}, Connections: 1, Open: 1, RatePerSecond: 0.1, BytesSent: 4, BytesReceived: 6,
			SourceIdentity: td + "web", DestinationIdentity: td + "cart", Counted: &schema.GraphCounters{}},
	}
	if diff := cmp.Diff(want, edges(t, ev)); diff != "" {
		t.Errorf("edges (-want +got):\n%s", diff)
	}
}

func TestNodes(t *testing.T) {
	got := map[string]string{}
	for _, n := range Build(evidence()).Nodes {
		got[n.ID] = string(n.Enrolment) + " " + n.Identity
		if n.Kind == schema.GraphService {
			got[n.ID] = strings.Join(n.Endpoints, " ")
		}
	}
	want := map[string]string{
		"workload/shop/web": "ambient " + td + "web", "workload/shop/cart": "ambient " + td + "cart", "workload/plain/batch": "outside ",
		"workload/istio-system/istiod": "mesh ", "workload/shop/late": "pending ", "external/database": " ",
		"service/shop/cart": "workload/shop/cart", "service/shop/db": "external/database",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
}

func TestWindow(t *testing.T) {
	ev := evidence()
	if from, to := Window(time.Time{}, noon, ev.Ztunnels); from != noon || to != noon {
		t.Errorf("of nothing: %v to %v", from, to)
	}
	ev.log(0, telemetry.MessageComplete, "", telemetry.Record{Start: noon.Add(-time.Minute)})
	if from, _ := Window(time.Time{}, noon, ev.Ztunnels); from != noon.Add(-time.Minute) {
		t.Errorf("of an entry: from %v", from)
	}
	if from, _ := Window(noon.Add(-time.Second), noon, ev.Ztunnels); from != noon.Add(-time.Second) {
		t.Errorf("as asked for: from %v", from)
	}
}
