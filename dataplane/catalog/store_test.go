// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func pod(name, ip string, opts ...func(*mesh.Workload)) *mesh.Workload {
	w := &mesh.Workload{UID: "Kubernetes//Pod/shop/" + name, Name: name, Namespace: "shop", Addresses: []netip.Addr{addr(ip)}, Capacity: 1}
	for _, o := range opts {
		o(w)
	}
	return w
}

func member(host string, ports ...mesh.PortMap) func(*mesh.Workload) {
	return func(w *mesh.Workload) {
		w.Services = append(w.Services, mesh.Membership{Key: "shop/" + host, Ports: ports})
	}
}

func service(host, vip string, opts ...func(*mesh.Service)) *mesh.Service {
	name, _, _ := strings.Cut(host, ".")
	s := &mesh.Service{Name: name, Namespace: "shop", Hostname: host, Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 8080}}}
	if vip != "" {
		s.VIPs = []mesh.NetworkAddress{{Addr: addr(vip)}}
	}
	for _, o := range opts {
		o(s)
	}
	return s
}

func in(ns string) func(*mesh.Service) { return func(s *mesh.Service) { s.Namespace = ns } }
func canonical(s *mesh.Service)        { s.Canonical = true }
func private(s *mesh.Service)          { s.NamespacePrivate = true }
func cidr(p string) func(*mesh.Service) {
	return func(s *mesh.Service) { s.CIDRs = append(s.CIDRs, mesh.NetworkPrefix{Prefix: netip.MustParsePrefix(p)}) }
}

func storeOf(d Delta) *Store {
	s := New()
	s.Apply(d)
	return s
}

func uid(w *mesh.Workload) string {
	if w == nil {
		return ""
	}
	return w.UID
}

func key(s *mesh.Service) string {
	if s == nil {
		return ""
	}
	return s.Key()
}

func TestLookups(t *testing.T) {
	s := storeOf(Delta{
		Workloads: []*mesh.Workload{
			pod("a", "10.0.0.1", member("cart.svc"), func(w *mesh.Workload) { w.ServiceAccount = "cart" }),
			pod("b", "::ffff:10.0.0.2", func(w *mesh.Workload) { w.Network = "n2" }),
			pod("host", "192.168.0.1", func(w *mesh.Workload) { w.NetworkMode = mesh.NetworkHost }),
		},
		Services: []*mesh.Service{service("cart.svc", "10.96.0.1")},
		Policies: []*mesh.Policy{{Name: "p", Namespace: "shop", Scope: mesh.ScopePolicyWorkload}},
	}).Load()
	for _, tt := range []struct{ name, got, want string }{
		{"by uid", uid(s.WorkloadByUID("Kubernetes//Pod/shop/a")), "Kubernetes//Pod/shop/a"},
		{"by unknown uid", uid(s.WorkloadByUID("a")), ""},
		{"by address", uid(s.WorkloadByAddr("", addr("10.0.0.1"))), "Kubernetes//Pod/shop/a"},
		{"by mapped address", uid(s.WorkloadByAddr("", addr("::ffff:10.0.0.1"))), "Kubernetes//Pod/shop/a"},
		{"in another network", uid(s.WorkloadByAddr("n2", addr("10.0.0.1"))), ""},
		{"of another network", uid(s.WorkloadByAddr("n2", addr("10.0.0.2"))), "Kubernetes//Pod/shop/b"},
		{"host network", uid(s.WorkloadByAddr("", addr("192.168.0.1"))), ""},
		{"host network by uid", uid(s.WorkloadByUID("Kubernetes//Pod/shop/host")), "Kubernetes//Pod/shop/host"},
		{"by name", uid(s.WorkloadByName("shop", "a", "cart")), "Kubernetes//Pod/shop/a"},
		{"by name, default account", uid(s.WorkloadByName("shop", "b", "")), "Kubernetes//Pod/shop/b"},
		{"by name, other account", uid(s.WorkloadByName("shop", "a", "thief")), ""},
		{"service", key(s.Service("shop/cart.svc")), "shop/cart.svc"},
		{"unknown service", key(s.Service("bank/cart.svc")), ""},
		{"service of host", key(s.ServiceOfHost(s.WorkloadByUID("Kubernetes//Pod/shop/a"), "cart.svc")), "shop/cart.svc"},
		{"host that does not select the workload", key(s.ServiceOfHost(s.WorkloadByUID("Kubernetes//Pod/shop/b"), "cart.svc")), ""},
		{"endpoint", uid(s.Endpoints("shop/cart.svc")[0]), "Kubernetes//Pod/shop/a"},
		{"policy", s.Policy("shop/p").Key(), "shop/p"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}

func TestServiceByVIP(t *testing.T) {
	s := storeOf(Delta{Services: []*mesh.Service{
		service("one", "10.96.0.1"),
		service("two", "10.96.0.2", in("a")), service("two", "10.96.0.2", in("b"), canonical), service("two", "10.96.0.2", in("c"), private),
		service("wide", "", in("a"), cidr("240.0.0.0/8")), service("narrow", "", in("b"), cidr("240.240.0.0/16")),
		service("narrow2", "", in("c"), cidr("240.240.0.0/16"), canonical), service("six", "", in("a"), cidr("fd00::/64")),
		service("exact", "240.240.0.9", in("z")), service("hidden", "10.96.0.7", in("p"), private),
	}}).Load()
	for _, tt := range []struct{ vip, from, want string }{
		{"10.96.0.1", "shop", "shop/one"},
		{"10.96.0.1", "", "shop/one"},
		{"10.96.0.2", "a", "a/two"},
		{"10.96.0.2", "c", "c/two"},
		{"10.96.0.2", "shop", "b/two"},
		{"10.96.0.7", "p", "p/hidden"},
		{"10.96.0.7", "shop", ""},
		{"240.1.1.1", "shop", "a/wide"},
		{"240.240.0.1", "shop", "c/narrow2"},
		{"240.240.0.1", "a", "a/wide"},
		{"240.240.0.1", "b", "b/narrow"},
		{"240.240.0.9", "a", "z/exact"},
		{"fd00::5", "shop", "a/six"},
		{"fd01::5", "shop", ""},
	} {
		if got := key(s.ServiceByVIP("", addr(tt.vip), tt.from)); got != tt.want {
			t.Errorf("%s from %q: %q, want %q", tt.vip, tt.from, got, tt.want)
		}
	}
}

func TestRangeGoesAwayWithItsService(t *testing.T) {
	s := storeOf(Delta{Services: []*mesh.Service{service("wide", "", cidr("240.0.0.0/8")), service("other", "", in("b"), cidr("240.0.0.0/8"))}})
	s.Apply(Delta{RemovedAddresses: []string{"shop/wide"}})
	if got := key(s.Load().ServiceByVIP("", addr("240.0.0.1"), "")); got != "b/other" {
		t.Errorf("after the first removal: %q", got)
	}
	s.Apply(Delta{RemovedAddresses: []string{"b/other"}})
	if got := key(s.Load().ServiceByVIP("", addr("240.0.0.1"), "")); got != "" {
		t.Errorf("after the second: %q", got)
	}
	if n := s.Load().lengths.v4[8]; n != 0 {
		t.Errorf("%d ranges of length 8 are still counted", n)
	}
}

func TestAddressWithSeveralOwners(t *testing.T) {
	entry := func(name string) *mesh.Workload {
		w := pod(name, "10.0.0.1")
		w.UID = "Kubernetes/networking.istio.io/WorkloadEntry/shop/" + name
		return w
	}
	s := New()
	owner := func() string {
		return strings.TrimPrefix(uid(s.Load().WorkloadByAddr("", addr("10.0.0.1"))), "Kubernetes//Pod/shop/")
	}
	for _, step := range []struct {
		d    Delta
		want string
	}{
		{Delta{Workloads: []*mesh.Workload{pod("old", "10.0.0.1")}}, "old"},
		{Delta{Workloads: []*mesh.Workload{pod("new", "10.0.0.1")}}, "new"},
		{Delta{Workloads: []*mesh.Workload{entry("entry")}}, "new"},
		{Delta{Workloads: []*mesh.Workload{pod("old", "10.0.0.1")}}, "old"},
		{Delta{RemovedAddresses: []string{"Kubernetes//Pod/shop/old"}}, "new"},
		{Delta{Workloads: []*mesh.Workload{pod("new", "10.0.0.2")}}, "Kubernetes/networking.istio.io/WorkloadEntry/shop/entry"},
		{Delta{RemovedAddresses: []string{"Kubernetes/networking.istio.io/WorkloadEntry/shop/entry"}}, ""},
	} {
		s.Apply(step.d)
		if got := owner(); got != step.want {
			t.Fatalf("owner %q, want %q", got, step.want)
		}
	}
}

func TestEndpointsBeforeTheirService(t *testing.T) {
	s := storeOf(Delta{Workloads: []*mesh.Workload{pod("a", "10.0.0.1", member("cart.svc"))}})
	if got := slices.Collect(s.Load().Staged()); !slices.Equal(got, []string{"shop/cart.svc"}) {
		t.Errorf("staged %q", got)
	}
	s.Apply(Delta{Services: []*mesh.Service{service("cart.svc", "10.96.0.1")}})
	if got := s.Load().Endpoints("shop/cart.svc"); len(got) != 1 {
		t.Errorf("%d endpoints", len(got))
	}
	if got := slices.Collect(s.Load().Staged()); got != nil {
		t.Errorf("staged %q", got)
	}
}

func TestPolicies(t *testing.T) {
	p := func(ns, name string, scope mesh.PolicyScope) *mesh.Policy {
		return &mesh.Policy{Namespace: ns, Name: name, Scope: scope}
	}
	s := storeOf(Delta{Policies: []*mesh.Policy{
		p("istio-system", "all", mesh.ScopePolicyGlobal), p("shop", "ns", mesh.ScopePolicyNamespace), p("bank", "ns", mesh.ScopePolicyNamespace),
		p("shop", "picked", mesh.ScopePolicyWorkload), p("istio-system", "strict", mesh.ScopePolicyWorkload),
	}})
	w := &mesh.Workload{Namespace: "shop"}
	named := &mesh.Workload{Namespace: "shop", AuthorizationPolicies: []string{"istio-system/strict", "shop/gone", "shop/ns"}}
	elsewhere := &mesh.Workload{Namespace: "lone"}
	check := func(step string, w *mesh.Workload, want ...string) {
		t.Helper()
		var got []string
		for _, x := range s.Load().PolicySet(w) {
			for _, p := range x.Policies() {
				got = append(got, p.Key())
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step, diff)
		}
	}
	check("namespace", w, "istio-system/all", "shop/ns")
	check("named", named, "istio-system/all", "istio-system/strict", "shop/ns")
	check("no policy of its own", elsewhere, "istio-system/all")
	s.Apply(Delta{Policies: []*mesh.Policy{p("istio-system", "more", mesh.ScopePolicyGlobal)}})
	check("new global", w, "istio-system/all", "istio-system/more", "shop/ns")
	s.Apply(Delta{Policies: []*mesh.Policy{p("shop", "ns", mesh.ScopePolicyWorkload)}, RemovedPolicies: []string{"istio-system/all"}})
	check("changed scope", w, "istio-system/more")
	s.Apply(Delta{RemovedPolicies: []string{"istio-system/more", "istio-system/strict"}})
	check("none left", w)
}

func TestChanged(t *testing.T) {
	s := New()
	before := s.Changed()
	s.Apply(Delta{})
	select {
	case <-before:
		t.Fatal("an empty delta woke the watchers")
	default:
	}
	s.Apply(Delta{Workloads: []*mesh.Workload{pod("a", "10.0.0.1")}})
	select {
	case <-before:
	default:
		t.Fatal("the change did not wake the watchers")
	}
}

func TestWaitFor(t *testing.T) {
	s := New()
	known := func(s *Snapshot) bool { return s.WorkloadByUID("Kubernetes//Pod/shop/b") != nil }
	done := make(chan error, 1)
	go func() { done <- s.WaitFor(t.Context(), known) }()
	s.Apply(Delta{Workloads: []*mesh.Workload{pod("a", "10.0.0.1")}})
	s.Apply(Delta{Workloads: []*mesh.Workload{pod("b", "10.0.0.2")}})
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.WaitFor(ctx, func(*Snapshot) bool { return false }); err == nil {
		t.Error("no error after the deadline")
	}
}

func TestStringsAreShared(t *testing.T) {
	s := storeOf(Delta{Workloads: []*mesh.Workload{
		pod("a", "10.0.0.1", member(strings.Clone("cart.svc"), mesh.PortMap{ServicePort: 80, TargetPort: 8080})),
		pod("b", "10.0.0.2", member(strings.Clone("cart.svc"), mesh.PortMap{ServicePort: 80, TargetPort: 8080})),
	}}).Load()
	a, b := s.WorkloadByUID("Kubernetes//Pod/shop/a"), s.WorkloadByUID("Kubernetes//Pod/shop/b")
	if &a.Services[0].Ports[0] != &b.Services[0].Ports[0] {
		t.Error("two endpoints hold two copies of the same ports")
	}
}

func TestInternerForgets(t *testing.T) {
	s := New()
	for i := range 3 * sweepSlack {
		w := pod("a", "10.0.0.1")
		w.Node = fmt.Sprint("node", i)
		s.Apply(Delta{Workloads: []*mesh.Workload{w}})
	}
	if n := len(s.intern.m); n > sweepSlack+100 {
		t.Errorf("%d strings are kept for one workload", n)
	}
}

// TestRandomDeltas compares the snapshot with plain maps, and that older snapshots do not change.
func TestRandomDeltas(t *testing.T) {
	g := rand.New(rand.NewPCG(3, 4))
	s := New()
	workloads, services := map[string]*mesh.Workload{}, map[string]*mesh.Service{}
	var old *Snapshot
	var oldDump string
	for step := range 400 {
		var d Delta
		for range g.IntN(6) {
			w := randomWorkload(g)
			d.Workloads = append(d.Workloads, w)
		}
		for range g.IntN(3) {
			v := service(fmt.Sprint("s", g.IntN(8)), fmt.Sprint("10.96.0.", g.IntN(5)), in(fmt.Sprint("ns", g.IntN(2))))
			d.Services = append(d.Services, v)
		}
		for range g.IntN(4) {
			d.RemovedAddresses = append(d.RemovedAddresses, fmt.Sprint("c//Pod/shop/", g.IntN(30)), fmt.Sprint("ns", g.IntN(2), "/s", g.IntN(8)))
		}
		for _, name := range d.RemovedAddresses {
			delete(workloads, name)
			delete(services, name)
		}
		for _, w := range d.Workloads {
			workloads[w.UID] = w
		}
		for _, v := range d.Services {
			services[v.Key()] = v
		}
		s.Apply(d)
		compare(t, s.Load(), workloads, services)
		if old != nil && describe(old) != oldDump {
			t.Fatalf("step %d changed an older snapshot", step)
		}
		old, oldDump = s.Load(), describe(s.Load())
	}
}

func randomWorkload(g *rand.Rand) *mesh.Workload {
	id := fmt.Sprint(g.IntN(30))
	w := &mesh.Workload{UID: "c//Pod/shop/" + id, Name: id, Namespace: "shop", Capacity: 1 + g.Uint32N(3)}
	for range g.IntN(3) {
		a := addr(fmt.Sprint("10.0.0.", g.IntN(20)))
		if !slices.Contains(w.Addresses, a) {
			w.Addresses = append(w.Addresses, a)
		}
	}
	for i := range 8 {
		if g.IntN(4) == 0 {
			w.Services = append(w.Services, mesh.Membership{Key: fmt.Sprint("ns0/s", i)})
		}
	}
	return w
}

func compare(t *testing.T, s *Snapshot, workloads map[string]*mesh.Workload, services map[string]*mesh.Service) {
	t.Helper()
	if w, v, _ := s.Len(); w != len(workloads) || v != len(services) {
		t.Fatalf("%d workloads and %d services, want %d and %d", w, v, len(workloads), len(services))
	}
	members, max := map[string]int{}, map[string]uint32{}
	owners := map[netip.Addr]int{}
	for id, w := range workloads {
		if s.WorkloadByUID(id) != w || s.WorkloadByName(w.Namespace, w.Name, "") != w {
			t.Fatalf("workload %s is not found", id)
		}
		for _, m := range w.Services {
			members[m.Key]++
			max[m.Key] = maxOf(max[m.Key], w.Capacity)
			if !slices.Contains(s.Endpoints(m.Key), w) {
				t.Fatalf("workload %s is no endpoint of %s", id, m.Key)
			}
		}
		for _, a := range w.Addresses {
			owners[a]++
			if got := s.WorkloadByAddr("", a); got == nil || !slices.Contains(got.Addresses, a) || workloads[got.UID] != got {
				t.Fatalf("address %s finds %v", a, got)
			}
		}
	}
	entries := 0
	for range s.addrs.all() {
		entries++
	}
	for _, n := range owners {
		entries -= n
	}
	if entries != 0 {
		t.Fatalf("%d stale addresses", entries)
	}
	for e := range s.endpoints.all() {
		if len(e.members) != members[e.key] || e.max != max[e.key] {
			t.Fatalf("%s has %d endpoints of at most %d, want %d of %d", e.key, len(e.members), e.max, members[e.key], max[e.key])
		}
	}
	for k, v := range services {
		if s.Service(k) != v || s.ServiceByVIP("", v.VIPs[0].Addr, v.Namespace) == nil {
			t.Fatalf("service %s is not found", k)
		}
	}
}

func maxOf(a, b uint32) uint32 { return max(a, b) }

func describe(s *Snapshot) string {
	var b strings.Builder
	for w := range s.AllWorkloads() {
		fmt.Fprintln(&b, w.UID, w.Addresses, w.Services)
	}
	for v := range s.AllServices() {
		fmt.Fprintln(&b, v.Key(), v.VIPs)
		for _, w := range s.Endpoints(v.Key()) {
			fmt.Fprintln(&b, " ", w.UID)
		}
	}
	return b.String()
}

// TestBulkLeavesNoRoom: leaves that grew in one edit hold what they need, and the next edit does not write to them.
func TestBulkLeavesNoRoom(t *testing.T) {
	s := storeOf(bigCatalog(many))
	before := s.Load()
	for _, nd := range before.addrs.root {
		for _, leaf := range nd.leaves {
			if cap(leaf)-len(leaf) > 10 { // the allocator rounds up
				t.Fatalf("a leaf of %d has room for %d", len(leaf), cap(leaf))
			}
		}
	}
	w := bigWorkload(1, many)
	if got := before.WorkloadByUID(w.UID); got == nil || got.Name != w.Name {
		t.Fatalf("found %+v", got)
	}
	s.Apply(Delta{RemovedAddresses: []string{w.UID}})
	if before.WorkloadByAddr("", w.Addresses[0]) == nil || s.Load().WorkloadByAddr("", w.Addresses[0]) != nil {
		t.Error("an edit changed the snapshot before it")
	}
}
