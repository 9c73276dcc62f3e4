// SPDX-License-Identifier: Apache-2.0

package nodenet_test

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

var update = flag.Bool("update", false, "rewrite golden files")

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func endpoints(s ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range s {
		out = append(out, netip.MustParseAddrPort(e))
	}
	return out
}

var (
	node1 = nodenet.Host{Name: "node1", Addresses: addrs("172.18.0.1", "fd00:172:18::1"), PodSubnets: prefixes("10.244.0.0/24", "fd00:10:244::/64")}
	node2 = nodenet.Host{Name: "node2", Addresses: addrs("172.18.0.2", "fd00:172:18::2"), PodSubnets: prefixes("10.244.1.0/24", "fd00:10:244:1::/64")}
	// outside is a host beyond the cluster, with an address that is not of the underlay.
	outside = nodenet.Host{Name: "metadata", Addresses: addrs("172.18.0.100", "fd00:172:18::64", "169.254.169.254")}

	serviceSubnets = prefixes("10.96.0.0/16", "fd00:10:96::/112")
)

// cart has endpoints on both nodes, spare none, and dns UDP besides TCP.
func services() []nodenet.Service {
	return []nodenet.Service{
		{Name: "shop/spare", VIPs: addrs("10.96.0.8"), Ports: []nodenet.ServicePort{{Port: 80}, {Port: 81, Protocol: nodenet.UDP}}},
		{Name: "shop/cart", VIPs: addrs("10.96.0.7", "fd00:10:96::7"), Ports: []nodenet.ServicePort{{
			Port: 80, Protocol: nodenet.TCP,
			Endpoints: endpoints("10.244.1.2:8080", "10.244.0.2:8080", "[fd00:10:244::2]:8080", "[fd00:10:244:1::2]:8080", "10.244.0.3:8080"),
		}}},
		{Name: "kube-system/kube-dns", VIPs: addrs("10.96.0.10"), Ports: []nodenet.ServicePort{
			{Port: 53, Protocol: nodenet.UDP, Endpoints: endpoints("10.244.0.4:53")},
			{Port: 53, Protocol: nodenet.TCP, Endpoints: endpoints("10.244.0.4:53")},
		}},
		{Name: "shop/headless", Ports: []nodenet.ServicePort{{Port: 80, Endpoints: endpoints("10.244.0.2:8080")}}},
		{Name: "shop/elsewhere", VIPs: addrs("203.0.113.9"), Ports: []nodenet.ServicePort{{Port: 443, Endpoints: endpoints("10.244.1.2:8443")}}},
	}
}

func configs() map[string]nodenet.Config {
	full := nodenet.Config{Self: node1, Peers: []nodenet.Host{node2, outside}, ServiceSubnets: serviceSubnets, Services: services()}
	v4 := nodenet.Config{
		Self:           nodenet.Host{Name: "node1", Addresses: addrs("172.18.0.1"), PodSubnets: prefixes("10.244.0.0/24")},
		Peers:          []nodenet.Host{{Name: "node2", Addresses: addrs("172.18.0.2"), PodSubnets: prefixes("10.244.1.0/24")}},
		ServiceSubnets: prefixes("10.96.0.0/16"), Services: services()[1:2],
	}
	v6 := nodenet.Config{
		Self:           nodenet.Host{Name: "node1", Addresses: addrs("fd00:172:18::1"), PodSubnets: prefixes("fd00:10:244::/64")},
		ServiceSubnets: prefixes("fd00:10:96::/112"), Services: services()[1:2],
	}
	cut := nodenet.Config{Self: node1, Peers: []nodenet.Host{node2}, ServiceSubnets: serviceSubnets, Cut: []string{"node2"}}
	masked := nodenet.Config{Self: node1, Peers: []nodenet.Host{node2}, ClusterSubnets: prefixes("10.244.0.0/16", "fd00:10:244::/56")}
	return map[string]nodenet.Config{
		"dual": full, "v4": v4, "v6": v6, "cut": cut, "masquerade": masked,
		"outside": {Self: outside, Peers: []nodenet.Host{node1, node2}},
	}
}

func plan(t testing.TB, c nodenet.Config) nodenet.Plan {
	t.Helper()
	p, err := nodenet.NewPlan(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestGoldenPlans(t *testing.T) {
	for name, c := range configs() {
		t.Run(name, func(t *testing.T) {
			got, path := plan(t, c).String(), filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("%s (-golden +plan; run with -update if the plan is right):\n%s", path, d)
			}
		})
	}
}

func TestPlanDoesNotDependOnOrder(t *testing.T) {
	a := configs()["dual"]
	b := configs()["dual"]
	b.Services = services()
	for i, j := 0, len(b.Services)-1; i < j; i, j = i+1, j-1 {
		b.Services[i], b.Services[j] = b.Services[j], b.Services[i]
	}
	eps := b.Services[3].Ports[0].Endpoints
	eps[0], eps[1] = eps[1], eps[0]
	if d := cmp.Diff(plan(t, a).Nftables(), plan(t, b).Nftables()); d != "" {
		t.Errorf("order of services or endpoints changes the plan:\n%s", d)
	}
}

func TestMistakesAreReportedTogether(t *testing.T) {
	_, err := nodenet.NewPlan(nodenet.Config{
		Self: nodenet.Host{Name: "node1", Addresses: addrs("172.18.0.1"), PodSubnets: prefixes("10.244.0.1/24", "fd00::/64")},
		Cut:  []string{"node9"},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"pod subnet 10.244.0.1/24 is not a network", "pod subnet fd00::/64 has no underlay address", `no peer "node9"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

// A service with a mistake takes nothing from the others, nor what is right from itself.
func TestMistakesOfServicesAreLeftOut(t *testing.T) {
	c := configs()["dual"]
	want := plan(t, c)
	c.Services = append(c.Services,
		nodenet.Service{Name: "a b", VIPs: addrs("10.96.0.1"), Ports: []nodenet.ServicePort{{Port: 80}}},
		nodenet.Service{Name: "shop/twice", VIPs: addrs("10.96.0.7", "::ffff:10.96.0.1"), Ports: []nodenet.ServicePort{
			{Port: 80, Endpoints: endpoints("10.244.0.9:80")}, {Port: 0}, {Port: 1, Protocol: "SCTP"},
		}})
	dns := &c.Services[2].Ports[0]
	dns.Endpoints = append(dns.Endpoints, endpoints("[::ffff:10.244.0.2]:53", "10.244.0.2:0")...)
	got := plan(t, c)
	if d := cmp.Diff(want.String(), got.String()); d != "" {
		t.Errorf("the plan (-without the mistakes +with):\n%s", d)
	}
	var said []string
	for _, p := range got.Problems {
		said = append(said, p.Error())
	}
	if d := cmp.Diff([]string{
		`service "a b": not a name`,
		`service "kube-system/kube-dns" port 53: bad endpoint [::ffff:10.244.0.2]:53`,
		`service "kube-system/kube-dns" port 53: bad endpoint 10.244.0.2:0`,
		`service "shop/twice": bad virtual address ::ffff:10.96.0.1`,
		`service "shop/twice": 10.96.0.7 port 80/TCP belongs to service "shop/cart"`,
		`service "shop/twice": port 0`,
		`service "shop/twice" port 1: protocol "SCTP" is neither TCP nor UDP`,
	}, said); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
}

func TestUnderlayAddresses(t *testing.T) {
	u := nodenet.Underlay{Bridge: "underlay", Subnets: prefixes("172.18.0.0/24", "fd00:172:18::/64")}
	got, err := u.Address(3)
	if err != nil || cmp.Diff([]string{"172.18.0.3", "fd00:172:18::3"}, []string{got[0].String(), got[1].String()}) != "" {
		t.Errorf("Address(3) = %v, %v", got, err)
	}
	if _, err := u.Address(256); err == nil {
		t.Error("Address(256): no error")
	}
}
