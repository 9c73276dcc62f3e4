// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/authz"
	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

func TestParseAuthority(t *testing.T) {
	for _, c := range []struct {
		in   string
		want authority
		ok   bool
	}{
		{"10.0.0.1:80", authority{ip: netip.MustParseAddr("10.0.0.1"), port: 80}, true},
		{"[fd00::1]:80", authority{ip: netip.MustParseAddr("fd00::1"), port: 80}, true},
		{"[::ffff:10.0.0.1]:80", authority{ip: netip.MustParseAddr("10.0.0.1"), port: 80}, true},
		{"cart.shop.svc:80", authority{host: "cart.shop.svc", port: 80}, true},
		{"cart", authority{}, false},
		{"cart:", authority{}, false},
		{"cart:http", authority{}, false},
		{"cart:0", authority{}, false},
		{"cart:65536", authority{}, false},
		{"10.0.0.1:0", authority{}, false},
		{"10.0.0:80", authority{}, false},
		{"fd00::1:80", authority{}, false},
		{"a@b:80", authority{}, false},
		{"[fe80::1%eth0]:80", authority{}, false}, // a zone means something to its sender only
		{":80", authority{}, false},
		{"", authority{}, false},
	} {
		got, err := parseAuthority(c.in)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("parseAuthority(%q) = %+v, %v", c.in, got, err)
		}
	}
}

// FuzzParseAuthority: what is accepted names one target, and writing it down again means the same one.
func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[fd00::1]:80", "cart.shop.svc:80", "[::ffff:1.2.3.4]:1", "a:b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAuthority(s)
		if err != nil {
			return
		}
		if a.port == 0 || a.ip.IsValid() == (a.host != "") {
			t.Fatalf("%q = %+v", s, a)
		}
		text := net.JoinHostPort(a.host, strconv.Itoa(int(a.port)))
		if a.ip.IsValid() {
			text = netip.AddrPortFrom(a.ip, a.port).String()
		}
		if again, err := parseAuthority(text); err != nil || again != a {
			t.Fatalf("%q = %+v, but %q = %+v, %v", s, a, text, again, err)
		}
	})
}

func TestOwns(t *testing.T) {
	own, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	self := &mesh.Workload{Addresses: []netip.Addr{own, netip.MustParseAddr("fd00::1")}}
	if !owns(self, own) || owns(self, other) {
		t.Errorf("own address %v, another %v", owns(self, own), owns(self, other))
	}
	if !owns(&mesh.Workload{}, other) {
		t.Error("a pod of which no address is known was refused everything")
	}
}

func TestOutboundSelfCall(t *testing.T) {
	ap := netip.MustParseAddrPort
	for _, c := range []struct {
		dst, local netip.AddrPort
		want       bool
	}{
		{ap("127.0.0.1:15001"), ap("127.0.0.1:15001"), true},
		{ap("[::1]:15008"), ap("[::1]:15001"), true},
		{ap("10.0.0.1:15001"), ap("10.0.0.1:15001"), true},
		{ap("10.0.0.2:15001"), ap("127.0.0.1:15001"), false}, // another pod's, redirected
		{ap("127.0.0.1:8080"), ap("127.0.0.1:15001"), false},
		{ap("10.0.0.1:8080"), ap("127.0.0.1:15001"), false},
	} {
		if got := outboundSelfCall(c.dst, c.local); got != c.want {
			t.Errorf("outboundSelfCall(%s, %s) = %t", c.dst, c.local, got)
		}
	}
}

// mini is a mesh of two namespaces; cart has two services.
func mini() *catalog.Snapshot {
	s := catalog.New()
	s.Apply(catalog.Delta{
		Workloads: []*mesh.Workload{
			{UID: "web", Name: "web", Namespace: "shop", ServiceAccount: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}},
			{UID: "cart", Name: "cart", Namespace: "shop", ServiceAccount: "cart", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.3")},
				Services: []mesh.Membership{
					{Key: "shop/admin.shop", Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 9000}}},
					{Key: "shop/cart.shop", Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 8080}}},
				}},
		},
		Services: []*mesh.Service{
			{Name: "admin", Namespace: "shop", Hostname: "admin.shop", Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 9000}}},
			{Name: "cart", Namespace: "shop", Hostname: "cart.shop", Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 8080}}},
			{Name: "other", Namespace: "shop", Hostname: "other.shop", Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 8080}}},
		},
	})
	return s.Load()
}

func TestCalledService(t *testing.T) {
	s := mini()
	cart := s.WorkloadByUID("cart")
	for _, c := range []struct {
		name, host string
		port       uint16
		want       string
	}{
		{"the host that the client names", "admin.shop", 8080, "admin.shop"},
		{"a host that does not select the workload is not believed", "other.shop", 8080, "cart.shop"},
		{"without a name the port tells", "", 9000, "admin.shop"},
		{"no service leads to the port", "", 22, ""},
	} {
		got := ""
		if svc := calledService(s, cart, c.host, c.port); svc != nil {
			got = svc.Hostname
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestHostPort(t *testing.T) {
	s := mini()
	cart := s.WorkloadByUID("cart")
	if p, err := hostPort(s, cart, "cart.shop", 80); p != 8080 || err != nil {
		t.Errorf("cart.shop:80 = %d, %v", p, err)
	}
	for _, c := range []struct {
		host string
		port uint16
	}{{"cart.shop", 81}, {"other.shop", 80}, {"nobody", 80}} {
		if p, err := hostPort(s, cart, c.host, c.port); err == nil {
			t.Errorf("%s:%d = %d, want an error", c.host, c.port, p)
		}
	}
}

// TestReusedAddress: an address that the catalog gives to one workload but whose certificate is another's is the other's
// (catalogue ID-10).
func TestReusedAddress(t *testing.T) {
	s := mini()
	p := &proxy{shared: &shared{cfg: &Config{}}}
	web := mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	addr := netip.MustParseAddr("10.0.0.2")
	if w := p.client(s, addr, web); w == nil || w.UID != "web" {
		t.Errorf("the owner of the address: %v", w)
	}
	if w := p.client(s, addr, mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "batch"}); w != nil {
		t.Errorf("another's certificate: %v", w)
	}
	if w := p.client(s, addr, mesh.Identity{}); w == nil || w.UID != "web" {
		t.Errorf("plain text: %v", w)
	}
}

// TestIdentityIsZDS: the node agent says who the pod is; the catalog adds the trust domain and nothing else.
func TestIdentityIsZDS(t *testing.T) {
	l := local{Info: Info{Name: "cart", Namespace: "shop", ServiceAccount: "cart"}}
	got := l.identity(&mesh.Workload{Namespace: "elsewhere", ServiceAccount: "root", TrustDomain: "td"})
	if got.String() != "spiffe://td/ns/shop/sa/cart" {
		t.Errorf("identity %s", got)
	}
}

func TestPoolKey(t *testing.T) {
	p := &proxy{local: local{Info: Info{Namespace: "shop", ServiceAccount: "web"}}}
	up := catalog.Upstream{
		Kind: catalog.KindWorkload, Tunnel: mesh.TunnelHBONE, Addr: netip.MustParseAddrPort("10.0.0.3:8080"),
		Workload: &mesh.Workload{TrustDomain: "td", Namespace: "b", ServiceAccount: "c"},
		Service:  &mesh.Service{SubjectAltNames: []string{"spiffe://td/ns/b/sa/c", "spiffe://a", "spiffe://a"}},
	}
	got := p.poolKey(&mesh.Workload{}, netip.MustParseAddr("10.0.0.2"), up)
	want := hbone.Key{
		Source: "spiffe://cluster.local/ns/shop/sa/web", Destinations: "spiffe://a spiffe://td/ns/b/sa/c",
		SourceIP: netip.MustParseAddr("10.0.0.2"), Addr: netip.MustParseAddrPort("10.0.0.3:15008"),
	}
	if got != want {
		t.Errorf("key %+v, want %+v", got, want)
	}
}

func TestTunnelError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&hbone.StatusError{Code: 401}, telemetry.FlagDeny},
		{&hbone.StatusError{Code: 503}, telemetry.FlagConnect},
		{&hbone.ConnectError{Stage: hbone.StageTCP, Err: errors.New("refused")}, telemetry.FlagConnect},
		{&hbone.ConnectError{Stage: hbone.StageTCP, Err: errors.New("timeout"), Timeout: true}, telemetry.FlagNetworkPolicy},
		{&hbone.ConnectError{Stage: hbone.StageTLS, Err: errors.New("bad")}, telemetry.FlagTLS},
		{&hbone.ConnectError{Stage: hbone.StageTLS, Err: &identity.UnavailableError{Err: errors.New("CA is down")}}, telemetry.FlagIdentity},
		{&hbone.ConnectError{Stage: hbone.StageH2, Err: errors.New("bad")}, telemetry.FlagH2},
		{errors.New("anything"), telemetry.FlagConnect},
	} {
		flag, err := tunnelError(c.err)
		if flag != c.want || !errors.Is(err, c.err) {
			t.Errorf("tunnelError(%v) = %s, %v; want %s", c.err, flag, err, c.want)
		}
	}
}

func TestTrackerJudgesOnlyWhatChanged(t *testing.T) {
	deny := &mesh.Policy{Name: "deny", Namespace: "shop", Action: mesh.Deny, Rules: []mesh.Rule{{Clauses: []mesh.Clause{{
		Matches: []mesh.Match{{DestinationPorts: []uint16{80}}}}}}}}
	cut := map[string]error{}
	conn := func(name string, inbound bool, port uint16) *live {
		return &live{inbound: inbound, judge: authz.Connection{Dst: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.3"), port)},
			cut: func(err error) { cut[name] = err }}
	}
	var tr tracker
	denied := conn("denied", true, 80)
	tr.add(denied)
	tr.add(conn("other port", true, 81))
	tr.add(conn("outbound", false, 80))
	tr.judge(authz.Set{})
	set := authz.Set{authz.NewIndex([]*mesh.Policy{deny})}
	if len(cut) != 0 {
		t.Fatalf("cut without a policy: %v", cut)
	}
	tr.judge(set)
	var why *policyError
	if len(cut) != 1 || !errors.As(cut["denied"], &why) || !why.late || why.decision.Policy() != "shop/deny" {
		t.Errorf("cut %v", cut)
	}
	clear(cut)
	tr.judge(set)
	if len(cut) != 0 {
		t.Errorf("judged again by the same policies: %v", cut)
	}
	tr.remove(denied)
	if in, out := tr.list(); len(in) != 1 || len(out) != 1 {
		t.Errorf("%d inbound, %d outbound", len(in), len(out))
	}
}

// TestPoliciesAreArrangedOnce: a pod that names policies keeps them until the pod or a policy changes.
func TestPoliciesAreArrangedOnce(t *testing.T) {
	store := catalog.New()
	named := func(name string, action mesh.PolicyAction) *mesh.Policy {
		return &mesh.Policy{Name: name, Namespace: "shop", Scope: mesh.ScopePolicyWorkload, Action: action}
	}
	cart := &mesh.Workload{UID: "u", Name: "cart", Namespace: "shop", AuthorizationPolicies: []string{"shop/a"}}
	store.Apply(catalog.Delta{Policies: []*mesh.Policy{named("a", mesh.Allow)}, Workloads: []*mesh.Workload{cart}})
	var c policies
	first := c.of(store.Load(), cart)
	if d := first.Decide(authz.Connection{}); d.Reason != authz.NoRuleMatched {
		t.Errorf("decision %+v", d)
	}
	store.Apply(catalog.Delta{Workloads: []*mesh.Workload{{UID: "v", Name: "other", Namespace: "shop"}}})
	if c.of(store.Load(), cart) != first {
		t.Error("arranged again for a workload that came")
	}
	store.Apply(catalog.Delta{Policies: []*mesh.Policy{named("b", mesh.Deny)}})
	if c.of(store.Load(), cart) == first {
		t.Error("not arranged again for a policy that came")
	}
	store.Apply(catalog.Delta{RemovedPolicies: []string{"shop/a"}})
	if d := c.of(store.Load(), cart).Decide(authz.Connection{}); d.Reason != authz.NoAllowPolicies {
		t.Errorf("after the policy went: %+v", d)
	}
}

func TestAwaitLocal(t *testing.T) {
	store := catalog.New()
	l := local{Info: Info{Name: "cart", Namespace: "shop", ServiceAccount: "cart"}, store: store, wait: 1}
	if _, _, err := l.await(t.Context()); !errors.Is(err, errUnknownSelf) {
		t.Errorf("unknown pod: %v", err)
	}
	l.wait = patience
	type result struct {
		w   *mesh.Workload
		err error
	}
	got := make(chan result)
	go func() {
		_, w, err := l.await(context.Background())
		got <- result{w, err}
	}()
	store.Apply(catalog.Delta{Workloads: []*mesh.Workload{{UID: "x", Name: "cart", Namespace: "shop", ServiceAccount: "other"}}})
	store.Apply(catalog.Delta{Workloads: []*mesh.Workload{{UID: "y", Name: "cart", Namespace: "shop", ServiceAccount: "cart"}}})
	if r := <-got; r.err != nil || r.w.UID != "y" {
		t.Errorf("got %+v", r)
	}
}

func TestRelaxOnceAfterWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w workCounter
		var calls atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.relax(ctx, func() { calls.Add(1) }) }()
		after := func(d time.Duration, want int32) {
			t.Helper()
			<-time.After(d)
			synctest.Wait()
			if got := calls.Load(); got != want {
				t.Errorf("%d calls, want %d", got, want)
			}
		}
		after(quiet+1, 1) // after the start
		after(time.Hour, 1)
		for range 5 {
			w.add()
			after(quiet, 1) // busy
		}
		after(time.Minute, 2)
		for range burst {
			w.add()
		}
		after(2*quiet+1, 3)
		after(afterBurst-2*quiet, 3)
		after(4*quiet, 4) // what ended later
		after(time.Hour, 4)
		w.load(bulk)
		after(2*quietBulk+1, 5) // sooner
		cancel()
		<-done
	})
}

// TestDecideSource: the kernel decides, and says so, unless the operator did (A1.2).
func TestDecideSource(t *testing.T) {
	refused := errors.New("not permitted")
	for _, c := range []struct {
		source SourceMode
		kernel error
		keep   bool
		fails  bool
		logs   string
	}{
		{SourceAuto, nil, true, false, "level=INFO"},
		{SourceAuto, refused, false, false, "level=WARN"},
		{SourceKept, nil, true, false, ""},
		{SourceKept, refused, false, true, ""},
	} {
		var log strings.Builder
		keep, err := decideSource(c.source, c.kernel, slog.New(slog.NewTextHandler(&log, nil)))
		if keep != c.keep || (err != nil) != c.fails || !strings.Contains(log.String(), c.logs) || (c.logs == "") != (log.Len() == 0) {
			t.Errorf("mode %d, %v: %v, %v, log %q", c.source, c.kernel, keep, err, log.String())
		}
	}
}
