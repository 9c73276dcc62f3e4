// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// fakeNames is a mesh in maps.
type fakeNames struct {
	byHost    map[string][]*mesh.Service
	endpoints map[string][]*mesh.Workload
}

func (f *fakeNames) ServicesByHost(host string) []*mesh.Service    { return f.byHost[host] }
func (f *fakeNames) Endpoints(key string) []*mesh.Workload         { return f.endpoints[key] }
func (f *fakeNames) endpoint(s *mesh.Service, w ...*mesh.Workload) { f.endpoints[s.Key()] = w }

func (f *fakeNames) add(s *mesh.Service) *mesh.Service {
	host := strings.ToLower(s.Hostname)
	f.byHost[host] = append(f.byHost[host], s)
	slices.SortFunc(f.byHost[host], func(a, b *mesh.Service) int { return cmp.Compare(a.Key(), b.Key()) })
	return s
}

func service(ns, host string, vips ...string) *mesh.Service {
	s := &mesh.Service{Namespace: ns, Hostname: host}
	for _, v := range vips {
		s.VIPs = append(s.VIPs, mesh.NetworkAddress{Addr: netip.MustParseAddr(v)})
	}
	return s
}

func pod(ns, name string, addrs ...string) *mesh.Workload {
	w := &mesh.Workload{Namespace: ns, Name: name, UID: "Kubernetes//Pod/" + ns + "/" + name}
	for _, a := range addrs {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
	}
	return w
}

var zone = Zone{Domain: "cluster.local", Preferred: "common", IPv6: true}

func sampleMesh() *fakeNames {
	n := &fakeNames{byHost: map[string][]*mesh.Service{}, endpoints: map[string][]*mesh.Workload{}}
	n.add(service("shop", "cart.shop.svc.cluster.local", "10.96.0.1", "fd96::1"))
	n.add(service("plain", "ledger.plain.svc.cluster.local", "10.96.0.2"))
	n.add(service("shop", "Upper.shop.svc.cluster.local", "10.96.0.3"))
	headless := n.add(service("shop", "db.shop.svc.cluster.local"))
	down, remote := pod("shop", "db-1", "10.244.0.2"), pod("shop", "db-2", "10.244.0.3")
	down.Status, remote.Network = mesh.Unhealthy, "far"
	n.endpoint(headless, pod("shop", "db-0", "10.244.0.1", "fd44::1"), down, remote)
	all := service("shop", "peers.shop.svc.cluster.local")
	all.LoadBalancing.AllowUnhealthy, all.Families = true, mesh.FamiliesIPv4
	n.endpoint(n.add(all), pod("shop", "peer-0", "10.244.0.4", "fd44::4"), down)
	n.add(service("shop", "empty.shop.svc.cluster.local"))
	n.add(service("shop", "api.example.com", "240.240.0.1", "2001:2::1"))
	n.add(service("shop", "*.wild.example.com", "240.240.0.2"))
	n.add(service("shop", "exact.wild.example.com", "240.240.0.3"))
	n.add(service("shop", "nowhere.example.com")) // no address, not of the cluster
	far := service("shop", "far.example.com", "240.240.0.9")
	far.VIPs[0].Network = "far"
	n.add(far)
	// One host in several namespaces.
	n.add(service("a", "same.example.com", "240.240.1.1"))
	canonical := n.add(service("b", "same.example.com", "240.240.1.2"))
	canonical.Canonical = true
	n.add(service("shop", "same.example.com", "240.240.1.3"))
	n.add(service("a", "liked.example.com", "240.240.2.1")).Canonical = true
	n.add(service("common", "liked.example.com", "240.240.2.2"))
	n.add(service("a", "secret.example.com", "240.240.3.1")).NamespacePrivate = true
	return n
}

// ask answers one query with the mesh's own knowledge: "forward", or the records in order, joined.
func ask(t *testing.T, n Names, namespace, name string, kind uint16) string {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), kind)
	low, ok := lookupName(q.Question[0].Name)
	if !ok {
		return "forward"
	}
	f, ok := zone.find(n, namespace, low)
	if !ok {
		return "forward"
	}
	r := zone.answerKnown(n, f, q)
	if r.Rcode != dns.RcodeSuccess || !r.Authoritative || r.Id != q.Id || !gocmp.Equal(r.Question, q.Question) {
		t.Errorf("%s: answer %v", name, r)
	}
	var parts []string
	owner := q.Question[0].Name
	for _, rr := range r.Answer {
		if rr.Header().Name != owner || rr.Header().Ttl != ttl {
			t.Errorf("%s: record %v, want one of %s", name, rr, owner)
		}
		switch rr := rr.(type) {
		case *dns.CNAME:
			owner = rr.Target
			parts = append(parts, "="+rr.Target)
		case *dns.A:
			parts = append(parts, rr.A.String())
		case *dns.AAAA:
			parts = append(parts, rr.AAAA.String())
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

func TestNames(t *testing.T) {
	n := sampleMesh()
	for _, c := range []struct {
		why, namespace, name string
		kind                 uint16
		want                 string
	}{
		{"full name", "shop", "cart.shop.svc.cluster.local", dns.TypeA, "10.96.0.1"},
		{"the other family", "shop", "cart.shop.svc.cluster.local", dns.TypeAAAA, "fd96::1"},
		{"any case", "shop", "CART.Shop.svc.cluster.LOCAL", dns.TypeA, "10.96.0.1"},
		{"a host name in upper case", "shop", "upper.shop.svc.cluster.local", dns.TypeA, "10.96.0.3"},
		{"short name", "shop", "cart", dns.TypeA, "10.96.0.1"},
		{"short name of another namespace", "plain", "cart", dns.TypeA, "forward"},
		{"name and namespace", "plain", "cart.shop", dns.TypeA, "10.96.0.1"},
		{"name, namespace and svc", "plain", "cart.shop.svc", dns.TypeA, "10.96.0.1"},
		{"known, without this family", "shop", "ledger.plain", dns.TypeAAAA, ""},
		{"unknown in the cluster", "shop", "missing.shop.svc.cluster.local", dns.TypeA, "forward"},
		{"unknown outside", "shop", "example.org", dns.TypeA, "forward"},
		{"first search domain, short", "shop", "cart.shop.shop.svc.cluster.local", dns.TypeA, "10.96.0.1 =cart.shop."},
		{"first search domain, full", "shop", "cart.shop.svc.cluster.local.shop.svc.cluster.local", dns.TypeA, "10.96.0.1 =cart.shop.svc.cluster.local."},
		{"second search domain", "shop", "cart.shop.svc.svc.cluster.local", dns.TypeA, "10.96.0.1 =cart.shop.svc."},
		{"third search domain", "shop", "Api.example.com.cluster.local", dns.TypeA, "240.240.0.1 =Api.example.com."},
		{"a search domain of another namespace", "shop", "api.example.com.plain.svc.cluster.local", dns.TypeA, "forward"},
		{"headless: those that are ready and here", "shop", "db", dns.TypeA, "10.244.0.1"},
		{"headless, the other family", "shop", "db", dns.TypeAAAA, "fd44::1"},
		{"headless that publishes all", "shop", "peers", dns.TypeA, "10.244.0.2 10.244.0.4"},
		{"headless of one family", "shop", "peers", dns.TypeAAAA, ""},
		{"headless without endpoints", "shop", "empty", dns.TypeA, ""},
		{"pod of a headless service", "shop", "db-0.db.shop.svc.cluster.local", dns.TypeA, "10.244.0.1"},
		{"pod, short", "shop", "db-0.db", dns.TypeAAAA, "fd44::1"},
		{"pod, with namespace", "plain", "db-0.db.shop", dns.TypeA, "10.244.0.1"},
		{"pod, up to svc", "plain", "db-0.db.shop.svc", dns.TypeA, "10.244.0.1"},
		{"pod, with a search domain", "shop", "db-0.db.shop.svc.cluster.local.svc.cluster.local", dns.TypeA, "10.244.0.1 =db-0.db.shop.svc.cluster.local."},
		{"pod that is not ready", "shop", "db-1.db.shop.svc.cluster.local", dns.TypeA, "forward"},
		{"no such pod", "shop", "db-7.db.shop.svc.cluster.local", dns.TypeA, "forward"},
		{"pod of a service that is not headless", "shop", "cart-0.cart.shop.svc.cluster.local", dns.TypeA, "forward"},
		{"entry", "plain", "api.example.com", dns.TypeA, "240.240.0.1"},
		{"entry, IPv6", "plain", "api.example.com", dns.TypeAAAA, "2001:2::1"},
		{"wildcard", "plain", "x.wild.example.com", dns.TypeA, "240.240.0.2"},
		{"wildcard, deeper", "plain", "x.y.wild.example.com", dns.TypeA, "240.240.0.2"},
		{"wildcard by a search domain: no alias", "shop", "x.wild.example.com.svc.cluster.local", dns.TypeA, "240.240.0.2"},
		{"exact before wildcard", "plain", "exact.wild.example.com", dns.TypeA, "240.240.0.3"},
		{"a wildcard does not cover itself", "plain", "wild.example.com", dns.TypeA, "forward"},
		{"entry without an address", "plain", "nowhere.example.com", dns.TypeA, "forward"},
		{"entry of another network", "plain", "far.example.com", dns.TypeA, ""},
		{"own namespace first", "shop", "same.example.com", dns.TypeA, "240.240.1.3"},
		{"canonical next", "plain", "same.example.com", dns.TypeA, "240.240.1.2"},
		{"preferred before canonical", "plain", "liked.example.com", dns.TypeA, "240.240.2.2"},
		{"private, from its namespace", "a", "secret.example.com", dns.TypeA, "240.240.3.1"},
		{"private, from another", "shop", "secret.example.com", dns.TypeA, "forward"},
		{"the root", "shop", ".", dns.TypeA, "forward"},
		{"escapes", "shop", `a\.b.example.com`, dns.TypeA, "forward"},
	} {
		if got := ask(t, n, c.namespace, c.name, c.kind); got != c.want {
			t.Errorf("%s: %s from %s: got %q, want %q", c.why, c.name, c.namespace, got, c.want)
		}
	}
}

func TestWithoutIPv6NothingOfItIsAnswered(t *testing.T) {
	z := zone
	z.IPv6 = false
	n := sampleMesh()
	f, ok := z.find(n, "shop", "cart")
	if got := z.addresses(n, f, true, nil); !ok || len(got) > 0 {
		t.Errorf("got %v", got)
	}
	if got := z.addresses(n, f, false, nil); len(got) != 1 {
		t.Errorf("control: got %v, want the IPv4 address", got)
	}
}

func TestOrderChanges(t *testing.T) {
	n := sampleMesh()
	s := n.add(service("shop", "many.shop.svc.cluster.local"))
	n.endpoint(s, pod("shop", "m-0", "10.0.0.1"), pod("shop", "m-1", "10.0.0.2"), pod("shop", "m-2", "10.0.0.3"))
	f, _ := zone.find(n, "shop", "many")
	first := map[netip.Addr]bool{}
	for range 200 {
		got := zone.addresses(n, f, false, nil)
		if len(got) != 3 {
			t.Fatalf("got %v", got)
		}
		first[got[0]] = true
	}
	if len(first) != 3 {
		t.Errorf("only %v ever came first", first)
	}
}
