// SPDX-License-Identifier: Apache-2.0

package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// model restates the rules of the reference one sentence at a time, without regard for speed.
func model(policies []*mesh.Policy, c Connection) (allowed bool) {
	var denies, allows []*mesh.Policy
	for _, p := range policies {
		switch {
		case p.DryRun:
		case p.Action == mesh.Deny:
			denies = append(denies, p)
		default:
			allows = append(allows, p)
		}
	}
	for _, p := range denies {
		if modelPolicy(p, c) {
			return false
		}
	}
	if len(allows) == 0 {
		return true
	}
	for _, p := range allows {
		if modelPolicy(p, c) {
			return true
		}
	}
	return false
}

func modelPolicy(p *mesh.Policy, c Connection) bool {
	for _, r := range p.Rules {
		all := true
		for _, cl := range r.Clauses {
			some := len(cl.Matches) == 0
			for _, m := range cl.Matches {
				some = some || modelMatch(m, c)
			}
			all = all && some
		}
		if all {
			return true
		}
	}
	return false
}

func modelMatch(m mesh.Match, c Connection) bool {
	principal := strings.TrimPrefix(c.Source.String(), "spiffe://")
	str := func(ms []mesh.StringMatch, v string, none bool) (out []bool) {
		for _, m := range ms {
			ok := map[mesh.StringMatchKind]bool{
				mesh.MatchExact: v == m.Value, mesh.MatchPrefix: strings.HasPrefix(v, m.Value),
				mesh.MatchSuffix: strings.HasSuffix(v, m.Value), mesh.MatchPresence: v != "",
			}[m.Kind]
			out = append(out, ok && !none)
		}
		return out
	}
	ips := func(ps []netip.Prefix, a netip.Addr) (out []bool) {
		for _, p := range ps {
			out = append(out, p.Contains(a.Unmap()))
		}
		return out
	}
	ports := func(ps []uint16) (out []bool) {
		for _, p := range ps {
			out = append(out, p == c.Dst.Port())
		}
		return out
	}
	accounts := func(ms []mesh.ServiceAccountMatch) (out []bool) {
		for _, m := range ms {
			out = append(out, principal != "" && m.Namespace == c.Source.Namespace && m.ServiceAccount == c.Source.ServiceAccount)
		}
		return out
	}
	anonymous := principal == ""
	positive := [][]bool{
		str(m.Namespaces, c.Source.Namespace, false), str(m.Principals, principal, anonymous), accounts(m.ServiceAccounts),
		ips(m.SourceIPs, c.SrcIP), ips(m.DestinationIPs, c.Dst.Addr()), ports(m.DestinationPorts),
	}
	negative := [][]bool{
		str(m.NotNamespaces, c.Source.Namespace, false), str(m.NotPrincipals, principal, anonymous), accounts(m.NotServiceAccounts),
		ips(m.NotSourceIPs, c.SrcIP), ips(m.NotDestinationIPs, c.Dst.Addr()), ports(m.NotDestinationPorts),
	}
	set := false
	for i := range positive {
		if len(positive[i]) > 0 {
			set = true
			if !contains(positive[i]) {
				return false
			}
		}
		if len(negative[i]) > 0 {
			set = true
			if contains(negative[i]) {
				return false
			}
		}
	}
	return set
}

func contains(bs []bool) bool {
	for _, b := range bs {
		if b {
			return true
		}
	}
	return false
}

// gen draws policies and connections from few values, so that they meet.
type gen struct{ *rand.Rand }

func pick[T any](g gen, vs ...T) T { return vs[g.IntN(len(vs))] }

func some[T any](g gen, f func() T) (out []T) {
	if g.IntN(4) == 0 {
		for range 1 + g.IntN(2) {
			out = append(out, f())
		}
	}
	return out
}

func (g gen) namespace() mesh.StringMatch {
	return mesh.StringMatch{Kind: pick(g, mesh.MatchExact, mesh.MatchPrefix, mesh.MatchSuffix, mesh.MatchPresence), Value: pick(g, "", "a", "ab", "b")}
}

func (g gen) principal() mesh.StringMatch {
	m := g.namespace()
	m.Value = pick(g, "", "td/ns/a", "td/ns/ab/sa/x", "td/ns/a/sa/x", "/sa/x", "x", "sa/y", "td", "other/ns/a/sa/x")
	return m
}

func (g gen) account() mesh.ServiceAccountMatch {
	return mesh.ServiceAccountMatch{Namespace: pick(g, "", "a", "ab"), ServiceAccount: pick(g, "", "x", "y")}
}

func (g gen) prefix() netip.Prefix {
	return netip.MustParsePrefix(pick(g, "10.0.0.0/24", "10.0.0.1/32", "0.0.0.0/0", "fd00::/64", "::/0", "10.0.0.2/31"))
}

func (g gen) port() uint16 { return pick[uint16](g, 80, 8080, 9000) }

func (g gen) match() mesh.Match {
	return mesh.Match{
		Namespaces: some(g, g.namespace), NotNamespaces: some(g, g.namespace),
		Principals: some(g, g.principal), NotPrincipals: some(g, g.principal),
		ServiceAccounts: some(g, g.account), NotServiceAccounts: some(g, g.account),
		SourceIPs: some(g, g.prefix), NotSourceIPs: some(g, g.prefix),
		DestinationIPs: some(g, g.prefix), NotDestinationIPs: some(g, g.prefix),
		DestinationPorts: some(g, g.port), NotDestinationPorts: some(g, g.port),
	}
}

func (g gen) policy(i int) *mesh.Policy {
	p := &mesh.Policy{Name: fmt.Sprint("p", i), Namespace: "ns", Action: pick(g, mesh.Allow, mesh.Deny), DryRun: g.IntN(8) == 0}
	for range g.IntN(3) {
		var r mesh.Rule
		for range 1 + g.IntN(2) {
			var c mesh.Clause
			for range g.IntN(3) {
				c.Matches = append(c.Matches, g.match())
			}
			r.Clauses = append(r.Clauses, c)
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

func (g gen) connection() Connection {
	c := Connection{
		SrcIP: netip.MustParseAddr(pick(g, "10.0.0.1", "10.0.0.3", "192.168.0.1", "fd00::1", "::ffff:10.0.0.1")),
		Dst:   netip.AddrPortFrom(netip.MustParseAddr(pick(g, "10.0.0.2", "10.1.0.2", "fd00::2")), g.port()),
	}
	if g.IntN(4) > 0 {
		c.Source = mesh.Identity{TrustDomain: pick(g, "td", "other"), Namespace: pick(g, "a", "ab", "b"), ServiceAccount: pick(g, "x", "y")}
	}
	return c
}

func TestDecideAgreesWithModel(t *testing.T) {
	g := gen{rand.New(rand.NewPCG(1, 2))}
	outcomes := map[Reason]int{}
	for range 50_000 {
		var policies []*mesh.Policy
		for i := range g.IntN(4) {
			policies = append(policies, g.policy(i))
		}
		c := g.connection()
		got := decide(policies, c)
		outcomes[got.Reason]++
		if want := model(policies, c); got.Allowed != want {
			t.Fatalf("Decide says %v, the model %v for %+v\n%s", got, want, c, cmp.Diff([]*mesh.Policy{}, policies))
		}
		if allows := got.Reason == NoAllowPolicies || got.Reason == AllowMatched; allows != got.Allowed {
			t.Fatalf("allowed %v with reason %v", got.Allowed, got.Reason)
		}
		if decided := got.Reason == AllowMatched || got.Reason == DenyMatched; decided != (got.By != nil) {
			t.Fatalf("policy %q with reason %v", got.Policy(), got.Reason)
		}
	}
	for r := NoAllowPolicies; r <= NoRuleMatched; r++ {
		if outcomes[r] < 500 {
			t.Errorf("only %d cases of %q: the generator proves too little", outcomes[r], r)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	strict := policy("strict", mesh.Deny, mesh.Match{NotPrincipals: present})
	ports := policy("ports", mesh.Deny, mesh.Match{DestinationPorts: []uint16{22, 23}}, mesh.Match{SourceIPs: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}})
	var many mesh.Match
	for i := range 50 {
		many.Principals = append(many.Principals, mesh.StringMatch{Value: fmt.Sprintf("cluster.local/ns/shop/sa/account-%d", i)})
	}
	many.Principals = append(many.Principals, mesh.StringMatch{Value: web.Principal()})
	for _, bb := range []struct {
		name     string
		policies []*mesh.Policy
	}{
		{"none", nil},
		{"strict", []*mesh.Policy{strict}},
		{"three", []*mesh.Policy{strict, ports, policy("allow", mesh.Allow, mesh.Match{Principals: exact(web.Principal())})}},
		{"principals=51", []*mesh.Policy{strict, policy("allow", mesh.Allow, many)}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			set, c := Set{NewIndex(bb.policies)}, conn(web)
			for b.Loop() {
				if !set.Decide(c).Allowed {
					b.Fatal("refused")
				}
			}
		})
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	set := Set{NewIndex([]*mesh.Policy{
		policy("strict", mesh.Deny, mesh.Match{NotPrincipals: present}),
		policy("allow", mesh.Allow, mesh.Match{Principals: prefix("cluster.local/ns/shop/"), DestinationPorts: []uint16{8080}}),
	})}
	if n := testing.AllocsPerRun(100, func() { set.Decide(conn(web)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
