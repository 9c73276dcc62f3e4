// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func hbone(w *mesh.Workload) { w.Tunnel = mesh.TunnelHBONE }
func sick(w *mesh.Workload)  { w.Status = mesh.Unhealthy }
func capacity(n uint32) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.Capacity = n }
}
func also(ip string) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.Addresses = append(w.Addresses, addr(ip)) }
}
func network(n string) func(*mesh.Workload) { return func(w *mesh.Workload) { w.Network = n } }
func place(region, zone, node string) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.Locality, w.Node = mesh.Locality{Region: region, Zone: zone}, node }
}
func waypoint(host string) *mesh.GatewayAddress {
	return &mesh.GatewayAddress{Hostname: mesh.Hostname{Namespace: "shop", Host: host}, HBONEPort: 15008}
}
func lb(l mesh.LoadBalancing) func(*mesh.Service) {
	return func(s *mesh.Service) { s.LoadBalancing = l }
}
func ports(p ...mesh.PortMap) func(*mesh.Service)    { return func(s *mesh.Service) { s.Ports = p } }
func families(f mesh.IPFamilies) func(*mesh.Service) { return func(s *mesh.Service) { s.Families = f } }

const (
	spiffe = "spiffe://cluster.local/ns/shop/sa/default"
	podA   = "Kubernetes//Pod/shop/a"
)

// answer is what a case expects of Resolve.
type answer struct {
	Kind    Kind
	UID     string
	Service string
	Addr    string
	Host    string
	SANs    []string
	Err     error
	Says    string // part of the error's text
}

func ask(s *Snapshot, r Request) answer {
	up, err := s.Resolve(r)
	a := answer{Kind: up.Kind, UID: uid(up.Workload), Service: key(up.Service), Addr: up.Addr.String(), Host: up.Hostname, SANs: up.SANs()}
	for _, e := range []error{ErrNoHealthyUpstream, ErrNoPort, ErrWaypointUnsupported, ErrGatewayUnsupported} {
		if errors.Is(err, e) {
			a.Err, a.Says = e, err.Error()
		}
	}
	return a
}

var (
	client  = pod("client", "10.0.0.100", place("r1", "z1", "n1"))
	gateway = pod("wp", "10.0.0.50", member("wp.svc"))
)

func cart(opts ...func(*mesh.Service)) []*mesh.Service {
	return []*mesh.Service{service("cart.svc", "10.96.0.1", opts...)}
}

type resolveCase struct {
	name      string
	source    *mesh.Workload
	dst       string
	workloads []*mesh.Workload
	services  []*mesh.Service
	want      answer
}

func checkResolve(t *testing.T, cases []resolveCase) {
	t.Helper()
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			s := storeOf(Delta{Workloads: tt.workloads, Services: tt.services}).Load()
			got := ask(s, Request{Source: tt.source, Dst: addrPort(tt.dst)})
			if !strings.Contains(got.Says, tt.want.Says) {
				t.Errorf("error %q does not say %q", got.Says, tt.want.Says)
			}
			got.Says, tt.want.Says = "", ""
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(errors.Is)); diff != "" {
				t.Errorf("upstream (-want +got):\n%s", diff)
			}
		})
	}
}

func TestResolveWorkloads(t *testing.T) {
	behind := func(w *mesh.Workload) { w.Waypoint = waypoint("wp.svc") }
	checkResolve(t, []resolveCase{
		{"unknown address passes", client, "1.1.1.1:443", nil, nil, answer{Kind: KindPassthrough, Addr: "1.1.1.1:443"}},
		{"mapped address is unmapped", client, "[::ffff:1.1.1.1]:443", nil, nil, answer{Kind: KindPassthrough, Addr: "1.1.1.1:443"}},
		{"pod, plain", client, "10.0.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1")}, nil,
			answer{Kind: KindWorkload, UID: podA, Addr: "10.0.0.1:80"}},
		{"pod, tunnelled", client, "10.0.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", hbone)}, nil,
			answer{Kind: KindWorkload, UID: podA, Addr: "10.0.0.1:80", SANs: []string{spiffe}}},
		{"pod, unhealthy, is still addressed", client, "10.0.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", sick)}, nil,
			answer{Kind: KindWorkload, UID: podA, Addr: "10.0.0.1:80"}},
		{"a workload comes before a VIP", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.96.0.1")}, cart(),
			answer{Kind: KindWorkload, UID: podA, Addr: "10.96.0.1:80"}},
		{"pod behind a waypoint", client, "10.0.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", behind), gateway}, nil,
			answer{Kind: KindWaypoint, UID: podA, Addr: "10.0.0.1:80", Err: ErrWaypointUnsupported, Says: "shop/wp.svc"}},
		{"pod behind a waypoint, from the waypoint", gateway, "10.0.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", behind), gateway}, nil,
			answer{Kind: KindWorkload, UID: podA, Addr: "10.0.0.1:80"}},
	})
}

func TestResolveServices(t *testing.T) {
	checkResolve(t, []resolveCase{
		{"service", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"), hbone)}, cart(),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "10.0.0.1:8080", SANs: []string{spiffe}}},
		{"service, from an unknown source", nil, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"))}, cart(),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "10.0.0.1:8080"}},
		{"the endpoint's own port wins", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc", mesh.PortMap{ServicePort: 80, TargetPort: 9090}))}, cart(),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "10.0.0.1:9090"}},
		{"service names its identities", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"), hbone)},
			cart(func(s *mesh.Service) { s.SubjectAltNames = []string{"spiffe://td/ns/x/sa/y"} }),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "10.0.0.1:8080", SANs: []string{"spiffe://td/ns/x/sa/y", spiffe}}},
		{"no such port", client, "10.96.0.1:81", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"))}, cart(),
			answer{Kind: KindWorkload, Service: "shop/cart.svc", Addr: "10.96.0.1:81", Err: ErrNoPort, Says: "resolve 10.96.0.1:81"}},
		{"no endpoints", client, "10.96.0.1:80", nil, cart(),
			answer{Kind: KindWorkload, Service: "shop/cart.svc", Addr: "10.96.0.1:80", Err: ErrNoHealthyUpstream, Says: "no endpoints"}},
		{"named port that the endpoint lacks", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"))}, cart(ports(mesh.PortMap{ServicePort: 80})),
			answer{Kind: KindWorkload, Service: "shop/cart.svc", Addr: "10.96.0.1:80", Err: ErrNoHealthyUpstream, Says: "1 do not serve the port"}},
		{"unhealthy endpoint", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"), sick)}, cart(),
			answer{Kind: KindWorkload, Service: "shop/cart.svc", Addr: "10.96.0.1:80", Err: ErrNoHealthyUpstream, Says: "1 are unhealthy"}},
		{"unhealthy endpoint, all allowed", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"), sick)}, cart(lb(mesh.LoadBalancing{AllowUnhealthy: true})),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "10.0.0.1:8080"}},
		{"capacity 0 is never chosen", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"), capacity(0))}, cart(),
			answer{Kind: KindWorkload, Service: "shop/cart.svc", Addr: "10.96.0.1:80", Err: ErrNoHealthyUpstream}},
		{"passthrough", client, "10.96.0.1:99", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"))}, cart(lb(mesh.LoadBalancing{Mode: mesh.BalancePassthrough})),
			answer{Kind: KindPassthrough, Service: "shop/cart.svc", Addr: "10.96.0.1:99"}},
		{"service behind a waypoint", client, "10.96.0.1:80", []*mesh.Workload{gateway}, cart(func(s *mesh.Service) { s.Waypoint = waypoint("wp.svc") }),
			answer{Kind: KindWaypoint, Service: "shop/cart.svc", Addr: "10.96.0.1:80", Err: ErrWaypointUnsupported, Says: "shop/wp.svc"}},
		{"service behind a weighted waypoint", client, "10.96.0.1:80", nil, cart(func(s *mesh.Service) {
			s.Waypoints = []mesh.WeightedWaypoint{{Destination: *waypoint("wp2.svc"), Weight: 1}}
		}),
			answer{Kind: KindWaypoint, Service: "shop/cart.svc", Addr: "10.96.0.1:80", Err: ErrWaypointUnsupported, Says: "shop/wp2.svc"}},
		{"service behind a waypoint, from the waypoint", gateway, "10.96.0.1:80", []*mesh.Workload{gateway, pod("a", "10.0.0.1", member("cart.svc"))}, cart(func(s *mesh.Service) { s.Waypoint = waypoint("wp.svc") }),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "10.0.0.1:8080"}},
		{"endpoint in another network", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"), network("n2"))}, cart(),
			answer{Kind: KindGateway, UID: podA, Service: "shop/cart.svc", Addr: "10.96.0.1:80", Err: ErrGatewayUnsupported, Says: `network "n2"`}},
		{"endpoint with a host name only", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"), func(w *mesh.Workload) { w.Addresses, w.Hostname = nil, "db.example" })}, cart(),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "invalid AddrPort", Host: "db.example"}},
	})
}

func TestResolveFamilies(t *testing.T) {
	checkResolve(t, []resolveCase{
		{"family of the request", client, "[fd00::1]:80", []*mesh.Workload{pod("a", "10.0.0.1", also("fd00:1::1"), member("six.svc"))}, []*mesh.Service{service("six.svc", "fd00::1")},
			answer{Kind: KindWorkload, UID: podA, Service: "shop/six.svc", Addr: "[fd00:1::1]:8080"}},
		{"other family if there is no own", client, "[fd00::1]:80", []*mesh.Workload{pod("a", "10.0.0.1", member("six.svc"))}, []*mesh.Service{service("six.svc", "fd00::1")},
			answer{Kind: KindWorkload, UID: podA, Service: "shop/six.svc", Addr: "10.0.0.1:8080"}},
		{"family that the service allows", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", also("fd00:1::1"), member("cart.svc"))}, cart(families(mesh.FamiliesIPv6)),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "[fd00:1::1]:8080"}},
		{"no address of an allowed family", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"))}, cart(families(mesh.FamiliesIPv6)),
			answer{Kind: KindWorkload, Service: "shop/cart.svc", Addr: "10.96.0.1:80", Err: ErrNoHealthyUpstream, Says: "1 have no usable address"}},
	})
}

func TestResolveScopes(t *testing.T) {
	checkResolve(t, []resolveCase{
		{"strict", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"), place("r1", "z1", "")), pod("b", "10.0.0.2", member("cart.svc"), place("r1", "z2", ""))},
			cart(lb(mesh.LoadBalancing{Mode: mesh.BalanceStrict, Scopes: []mesh.Scope{mesh.ScopeRegion, mesh.ScopeZone}})),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "10.0.0.1:8080"}},
		{"strict, none", client, "10.96.0.1:80", []*mesh.Workload{pod("b", "10.0.0.2", member("cart.svc"), place("r1", "z2", ""))},
			cart(lb(mesh.LoadBalancing{Mode: mesh.BalanceStrict, Scopes: []mesh.Scope{mesh.ScopeZone}})),
			answer{Kind: KindWorkload, Service: "shop/cart.svc", Addr: "10.96.0.1:80", Err: ErrNoHealthyUpstream, Says: "1 are outside the client's scope"}},
		{"strict, unknown source", nil, "10.96.0.1:80", []*mesh.Workload{pod("b", "10.0.0.2", member("cart.svc"))},
			cart(lb(mesh.LoadBalancing{Mode: mesh.BalanceStrict, Scopes: []mesh.Scope{mesh.ScopeNode}})),
			answer{Kind: KindWorkload, Service: "shop/cart.svc", Addr: "10.96.0.1:80", Err: ErrNoHealthyUpstream}},
		{"failover takes the nearest", client, "10.96.0.1:80", []*mesh.Workload{
			pod("b", "10.0.0.2", member("cart.svc"), place("r2", "z1", "")), pod("a", "10.0.0.1", member("cart.svc"), place("r1", "z9", "")), pod("c", "10.0.0.3", member("cart.svc"), place("r1", "z1", ""), sick)},
			cart(lb(mesh.LoadBalancing{Mode: mesh.BalanceFailover, Scopes: []mesh.Scope{mesh.ScopeRegion, mesh.ScopeZone}})),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "10.0.0.1:8080"}},
		{"failover falls back to the farthest", client, "10.96.0.1:80", []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"), place("r2", "z2", ""))},
			cart(lb(mesh.LoadBalancing{Mode: mesh.BalanceFailover, Scopes: []mesh.Scope{mesh.ScopeRegion}})),
			answer{Kind: KindWorkload, UID: podA, Service: "shop/cart.svc", Addr: "10.0.0.1:8080"}},
	})
}

// TestResolveAddressedEndpoint holds A1.5's "exact requested IP if the workload owns it", for a headless-like VIP.
func TestResolveAddressedEndpoint(t *testing.T) {
	host := pod("a", "10.0.0.7", also("192.168.0.1"), member("cart.svc"), func(w *mesh.Workload) { w.NetworkMode = mesh.NetworkHost })
	s := storeOf(Delta{Workloads: []*mesh.Workload{host}, Services: []*mesh.Service{service("cart.svc", "192.168.0.1")}}).Load()
	up, err := s.Resolve(Request{Dst: addrPort("192.168.0.1:80")})
	if err != nil || up.Addr != addrPort("192.168.0.1:8080") {
		t.Errorf("%v, %v", up.Addr, err)
	}
}

// TestWeights draws from small and large sets: both ways of choosing have the capacities' distribution.
func TestWeights(t *testing.T) {
	for _, n := range []int{4, 64} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var ws []*mesh.Workload
			total := 0.0
			for i := range n {
				weight := uint32(1 + i%4)
				w := pod(fmt.Sprint("p", i), fmt.Sprintf("10.0.1.%d", i), member("cart.svc"), capacity(weight))
				if i%8 == 7 {
					w.Status = mesh.Unhealthy
				} else {
					total += float64(weight)
				}
				ws = append(ws, w)
			}
			s := storeOf(Delta{Workloads: ws, Services: []*mesh.Service{service("cart.svc", "10.96.0.1")}}).Load()
			const draws = 60_000
			hits := map[*mesh.Workload]int{}
			for range draws {
				up, err := s.Resolve(Request{Dst: addrPort("10.96.0.1:80")})
				if err != nil {
					t.Fatal(err)
				}
				hits[up.Workload]++
			}
			for _, w := range ws {
				want := draws * float64(w.Capacity) / total
				if w.Status == mesh.Unhealthy {
					want = 0
				}
				if got := float64(hits[w]); math.Abs(got-want) > 6*math.Sqrt(want) {
					t.Errorf("%s of capacity %d: %v draws, want about %.0f", w.Name, w.Capacity, got, want)
				}
			}
		})
	}
}

func bigCatalog(n int) Delta {
	var d Delta
	for i := range n / 10 {
		a := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		host := fmt.Sprintf("svc-%d.ns-%d.svc.cluster.local", i, i%100)
		d.Services = append(d.Services, &mesh.Service{Name: fmt.Sprint("svc-", i), Namespace: fmt.Sprint("ns-", i%100), Hostname: host,
			VIPs: []mesh.NetworkAddress{{Addr: a}}, Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 8080}}})
	}
	for i := range n {
		d.Workloads = append(d.Workloads, bigWorkload(i, n))
	}
	return d
}

// bigWorkload has strings of its own, as a decoder would make them.
func bigWorkload(i, n int) *mesh.Workload {
	svc := i % (n / 10)
	ns, name := fmt.Sprint("ns-", svc%100), fmt.Sprintf("app-%d-6d4cf56db6-%05d", svc, i)
	return &mesh.Workload{
		UID: fmt.Sprintf("Kubernetes//Pod/%s/%s", ns, name), Name: name, Namespace: ns, Tunnel: mesh.TunnelHBONE,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(128 + i>>16), byte(i >> 8), byte(i)})}, TrustDomain: strings.Clone("cluster.local"),
		ServiceAccount: fmt.Sprint("app-", svc), Node: fmt.Sprint("node-", i%1000), CanonicalName: fmt.Sprint("app-", svc), CanonicalRevision: strings.Clone("v1"),
		WorkloadName: fmt.Sprint("app-", svc), ClusterID: strings.Clone("Kubernetes"), Capacity: 1,
		Locality: mesh.Locality{Region: fmt.Sprint("region-", i%3), Zone: fmt.Sprint("zone-", i%9)},
		Services: []mesh.Membership{{Key: fmt.Sprintf("%s/svc-%d.%s.svc.cluster.local", ns, svc, ns), Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 8080}}}},
	}
}
