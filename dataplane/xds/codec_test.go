// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/xds/securityapi"
	"github.com/ambientlab/ambientlab/dataplane/xds/workloadapi"
)

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func fullWorkload() *mesh.Workload {
	return &mesh.Workload{
		UID: "Kubernetes//Pod/shop/cart", Name: "cart", Namespace: "shop",
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:10:244::2")},
		Network:   "net1", Tunnel: mesh.TunnelHBONE, TrustDomain: "td", ServiceAccount: "cart",
		Waypoint:       &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "net1", Addr: netip.MustParseAddr("10.96.0.9")}, HBONEPort: 15008},
		NetworkGateway: &mesh.GatewayAddress{Hostname: mesh.Hostname{Namespace: "istio-system", Host: "gw.example.com"}, HBONEPort: 15009},
		Node:           "node1", CanonicalName: "cart", CanonicalRevision: "v2", Type: mesh.Job, WorkloadName: "cart-batch", ClusterID: "Kubernetes",
		Locality: mesh.Locality{Region: "r", Zone: "z", Subzone: "s"}, NetworkMode: mesh.NetworkHost, NativeTunnel: true,
		Hostname: "cart.example.com", Status: mesh.Unhealthy, Capacity: 3,
		Services: []mesh.Membership{
			{Key: "shop/cart.shop.svc.cluster.local", Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 443, TargetPort: 8443}}},
			{Key: "shop/other.example.com"},
		},
		AuthorizationPolicies: []string{"shop/deny-all"},
		ApplicationTunnel:     &mesh.ApplicationTunnel{ProxyProtocol: true, Port: 15088},
	}
}

func fullService() *mesh.Service {
	return &mesh.Service{
		Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc.cluster.local",
		VIPs:            []mesh.NetworkAddress{{Addr: netip.MustParseAddr("10.96.0.7")}, {Network: "net2", Addr: netip.MustParseAddr("fd00:10:96::7")}},
		CIDRs:           []mesh.NetworkPrefix{{Network: "net1", Prefix: netip.MustParsePrefix("240.240.0.0/16")}},
		Ports:           []mesh.PortMap{{ServicePort: 80, TargetPort: 8080, AppProtocol: mesh.ProtocolHTTP2}},
		SubjectAltNames: []string{"spiffe://cluster.local/ns/shop/sa/cart"},
		Waypoint:        &mesh.GatewayAddress{Address: mesh.NetworkAddress{Addr: netip.MustParseAddr("10.96.0.9")}, HBONEPort: 15008},
		Waypoints: []mesh.WeightedWaypoint{{
			Destination: mesh.GatewayAddress{Hostname: mesh.Hostname{Namespace: "shop", Host: "wp"}, HBONEPort: 15008}, Weight: 90,
		}},
		LoadBalancing: mesh.LoadBalancing{Mode: mesh.BalanceFailover, Scopes: []mesh.Scope{mesh.ScopeNetwork, mesh.ScopeZone}, AllowUnhealthy: true},
		Families:      mesh.FamiliesDual, Canonical: true, IngressWaypoint: true, NamespacePrivate: true,
	}
}

func fullPolicy() *mesh.Policy {
	strings := []mesh.StringMatch{{Value: "a"}, {Kind: mesh.MatchPrefix, Value: "b"}, {Kind: mesh.MatchSuffix, Value: "c"}, {Kind: mesh.MatchPresence}}
	accounts := []mesh.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "web"}}
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/16"), netip.MustParsePrefix("10.1.2.3/32")}
	return &mesh.Policy{
		Name: "p", Namespace: "shop", Scope: mesh.ScopePolicyWorkload, Action: mesh.Deny, DryRun: true,
		Rules: []mesh.Rule{
			{Clauses: []mesh.Clause{{Matches: []mesh.Match{
				{
					Namespaces: strings, NotNamespaces: strings[:1], Principals: strings[1:], NotPrincipals: strings,
					ServiceAccounts: accounts, NotServiceAccounts: accounts,
					SourceIPs: prefixes, NotSourceIPs: prefixes[:1], DestinationIPs: prefixes[1:], NotDestinationIPs: prefixes,
					DestinationPorts: []uint16{80, 65535}, NotDestinationPorts: []uint16{0},
				},
				{},
			}}, {}}},
			{},
		},
	}
}

func TestWorkloadSurvivesTheWire(t *testing.T) {
	for _, w := range []*mesh.Workload{fullWorkload(), {UID: "u", Capacity: 1}, {UID: "no capacity"}} {
		name, value, err := EncodeWorkload(w)
		if err != nil || name != w.UID {
			t.Fatal(name, err)
		}
		got, s, err := DecodeAddress(value)
		if err != nil || s != nil {
			t.Fatal(s, err)
		}
		if diff := cmp.Diff(w, got, byValue); diff != "" {
			t.Error(diff)
		}
		if _, again, _ := EncodeWorkload(w); string(again) != string(value) {
			t.Error("equal workloads, other bytes")
		}
	}
}

func TestServiceSurvivesTheWire(t *testing.T) {
	for _, s := range []*mesh.Service{fullService(), {Namespace: "shop", Hostname: "h"}} {
		name, value, err := EncodeService(s)
		if err != nil || name != s.Key() {
			t.Fatal(name, err)
		}
		w, got, err := DecodeAddress(value)
		if err != nil || w != nil {
			t.Fatal(w, err)
		}
		if diff := cmp.Diff(s, got, byValue); diff != "" {
			t.Error(diff)
		}
	}
}

func TestPolicySurvivesTheWire(t *testing.T) {
	for _, p := range []*mesh.Policy{fullPolicy(), {Name: "allow-nothing", Namespace: "shop"}, {Name: "global"}} {
		name, value, err := EncodePolicy(p)
		if err != nil || name != p.Key() {
			t.Fatal(name, err)
		}
		got, err := DecodeAuthorization(value)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, got, byValue); diff != "" {
			t.Error(diff)
		}
	}
}

// The two repositories that define the messages must understand these bytes, so the numbers are written out.
func TestFieldNumbersOnTheWire(t *testing.T) {
	_, value, err := EncodeWorkload(&mesh.Workload{UID: "u", Tunnel: mesh.TunnelHBONE, Capacity: 2, NetworkMode: mesh.NetworkHost})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintf("%x", value), "0a0e2801a20101"+"75"+"c80101da01020802"; got != want {
		t.Errorf("workload %s, want %s", got, want)
	}
	_, value, err = EncodePolicy(&mesh.Policy{Name: "p", Namespace: "n", Action: mesh.Deny, Rules: []mesh.Rule{{Clauses: []mesh.Clause{{
		Matches: []mesh.Match{{NotPrincipals: []mesh.StringMatch{{Kind: mesh.MatchPresence}}}},
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintf("%x", value), "0a017012016e2001"+"2a08"+"0a06"+"1204"+"2202"+"2200"; got != want {
		t.Errorf("policy %s, want %s", got, want)
	}
}

func TestBadWorkloadsAndServices(t *testing.T) {
	u, s := "u", "shop"
	for _, tc := range []struct {
		name string
		in   *workloadapi.Address
		want []string
	}{
		{"nothing", &workloadapi.Address{}, []string{"neither a workload nor a service"}},
		{"everything at once", addr(&workloadapi.Workload{Uid: u, Addresses: [][]byte{{1, 2, 3}}, TunnelProtocol: 2, Status: 9}),
			[]string{`workload "u"`, "addresses[0]: 3 bytes", "tunnel_protocol: LEGACY_ISTIO_MTLS", "status: unknown value 9"}},
		{"no uid", addr(&workloadapi.Workload{}), []string{"uid: missing"}},
		{"tunnel of the future", addr(&workloadapi.Workload{Uid: u, TunnelProtocol: 7}), []string{"tunnel_protocol: 7"}},
		{"service key", addr(&workloadapi.Workload{Uid: u, Services: map[string]*workloadapi.PortList{"x": nil}}), []string{`services["x"]`, "namespace/name"}},
		{"port", addr(&workloadapi.Workload{Uid: u, Services: map[string]*workloadapi.PortList{"a/b": {Ports: []*workloadapi.Port{{TargetPort: 70000}}}}}),
			[]string{`services["a/b"].ports[0].target_port: 70000`}},
		{"policy", addr(&workloadapi.Workload{Uid: u, AuthorizationPolicies: []string{"p"}}), []string{"authorization_policies[0]"}},
		{"waypoint nowhere", addr(&workloadapi.Workload{Uid: u, Waypoint: &workloadapi.GatewayAddress{}}), []string{"waypoint: no destination"}},
		{"service without names", svc(&workloadapi.Service{}), []string{"namespace: missing", "hostname: missing"}},
		{"VIP", svc(&workloadapi.Service{Namespace: s, Hostname: s, Addresses: []*workloadapi.NetworkAddress{{}}}), []string{"addresses[0]: 0 bytes"}},
		{"range", svc(&workloadapi.Service{Namespace: s, Hostname: s, Addresses: []*workloadapi.NetworkAddress{{Address: make([]byte, 4), Length: proto.Uint32(33)}}}),
			[]string{"addresses[0]: length 33"}},
		{"balancing", svc(&workloadapi.Service{Namespace: s, Hostname: s, LoadBalancing: &workloadapi.LoadBalancing{Mode: 9, RoutingPreference: []workloadapi.LoadBalancing_Scope{0}}}),
			[]string{"load_balancing.mode: unknown value 9", "load_balancing.routing_preference[0]: unspecified"}},
		{"weighted waypoint", svc(&workloadapi.Service{Namespace: s, Hostname: s, WeightedWaypoints: []*workloadapi.WeightedWaypoint{{}}}),
			[]string{"weighted_waypoints[0].destination: missing"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			value, err := proto.Marshal(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = DecodeAddress(value)
			wantAll(t, err, tc.want)
		})
	}
}

func addr(w *workloadapi.Workload) *workloadapi.Address {
	return &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}
}

func svc(s *workloadapi.Service) *workloadapi.Address {
	return &workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}}
}

func wantAll(t *testing.T, err error, want []string) {
	t.Helper()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q misses %q", err, w)
		}
	}
}

func TestBadPolicies(t *testing.T) {
	one := func(m *securityapi.Match) *securityapi.Authorization {
		return &securityapi.Authorization{Name: "p", Namespace: "n", Rules: []*securityapi.Rule{{Clauses: []*securityapi.Clause{{Matches: []*securityapi.Match{m}}}}}}
	}
	const at = "rules[0].clauses[0].matches[0]."
	for _, tc := range []struct {
		name string
		in   *securityapi.Authorization
		want []string
	}{
		{"no name", &securityapi.Authorization{Scope: securityapi.Scope_NAMESPACE}, []string{"name: missing", "namespace: missing"}},
		{"enums", &securityapi.Authorization{Name: "p", Namespace: "n", Scope: 8, Action: 9}, []string{"scope: unknown value 8", "action: unknown value 9"}},
		{"string match of the future", one(&securityapi.Match{NotPrincipals: []*securityapi.StringMatch{{}}}), []string{at + "not_principals[0]"}},
		{"address", one(&securityapi.Match{SourceIps: []*securityapi.Address{{Address: []byte{1}}}}), []string{at + "source_ips[0]: 1 bytes"}},
		{"length", one(&securityapi.Match{DestinationIps: []*securityapi.Address{{Address: make([]byte, 16), Length: 129}}}), []string{at + "destination_ips[0]: length 129"}},
		{"port", one(&securityapi.Match{DestinationPorts: []uint32{65536}}), []string{at + "destination_ports[0]: 65536"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			value, err := proto.Marshal(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			_, err = DecodeAuthorization(value)
			wantAll(t, err, tc.want)
		})
	}
}

func TestEncodersRefuse(t *testing.T) {
	_, _, err := EncodeWorkload(&mesh.Workload{Addresses: []netip.Addr{{}}, Waypoint: &mesh.GatewayAddress{}})
	wantAll(t, err, []string{"uid: missing", "addresses[0]", "waypoint.address"})
	_, _, err = EncodeService(&mesh.Service{CIDRs: []mesh.NetworkPrefix{{}}})
	wantAll(t, err, []string{"namespace: missing", "hostname: missing", "cidrs[0]"})
	_, _, err = EncodePolicy(&mesh.Policy{})
	wantAll(t, err, []string{"name: missing"})
}

func TestDetailsOfDecoding(t *testing.T) {
	mapped := netip.MustParseAddr("::ffff:10.0.0.1").As16()
	value, err := proto.Marshal(addr(&workloadapi.Workload{
		Uid: "u", Addresses: [][]byte{mapped[:]},
		Services: map[string]*workloadapi.PortList{"a/b": {Ports: []*workloadapi.Port{{ServicePort: 90, TargetPort: 1}, {ServicePort: 80, TargetPort: 2, AppProtocol: 99}, {ServicePort: 80, TargetPort: 3}}}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	w, _, err := DecodeAddress(value)
	if err != nil {
		t.Fatal(err)
	}
	if w.Addresses[0] != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("address %s", w.Addresses[0])
	}
	if w.Capacity != 1 {
		t.Errorf("capacity %d, want 1 where none is given", w.Capacity)
	}
	want := []mesh.PortMap{{ServicePort: 80, TargetPort: 3}, {ServicePort: 90, TargetPort: 1}}
	if diff := cmp.Diff(want, w.Services[0].Ports); diff != "" {
		t.Error(diff)
	}
}

func FuzzAddress(f *testing.F) {
	_, w, _ := EncodeWorkload(fullWorkload())
	_, s, _ := EncodeService(fullService())
	f.Add(w)
	f.Add(s)
	f.Fuzz(func(t *testing.T, value []byte) {
		w, s, err := DecodeAddress(value)
		if err != nil {
			return
		}
		var again []byte
		if w != nil {
			_, again, err = EncodeWorkload(w)
		} else {
			_, again, err = EncodeService(s)
		}
		if err != nil {
			t.Fatal(err)
		}
		w2, s2, err := DecodeAddress(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(w, w2, byValue) + cmp.Diff(s, s2, byValue); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzAuthorization(f *testing.F) {
	_, p, _ := EncodePolicy(fullPolicy())
	f.Add(p)
	f.Fuzz(func(t *testing.T, value []byte) {
		p, err := DecodeAuthorization(value)
		if err != nil {
			return
		}
		_, again, err := EncodePolicy(p)
		if err != nil {
			t.Fatal(err)
		}
		p2, err := DecodeAuthorization(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, p2, byValue); diff != "" {
			t.Fatal(diff)
		}
	})
}

func BenchmarkDecodeAddress(b *testing.B) {
	_, value, err := EncodeWorkload(fullWorkload())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := DecodeAddress(value); err != nil {
			b.Fatal(err)
		}
	}
}
