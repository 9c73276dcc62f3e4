// SPDX-License-Identifier: Apache-2.0

package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// TestIndexDecidesAsTheList: whatever the policies, and however they are shared out among indices, the decision is that of
// the list, to the policy that is named and the order of dry runs.
func TestIndexDecidesAsTheList(t *testing.T) {
	g := gen{rand.New(rand.NewPCG(3, 4))}
	outcomes := map[Reason]int{}
	filed := 0
	for range 20_000 {
		var all []*mesh.Policy
		var set Set
		for i := range set {
			var part []*mesh.Policy
			for range g.IntN(3) * (1 + g.IntN(2*few)) {
				part = append(part, g.policy(len(all)+len(part)))
			}
			if len(part) > 0 || g.IntN(2) == 0 {
				set[i] = arranged(part)
				filed += len(part)*3 - len(set[i].everywhere)
			}
			all = append(all, part...)
		}
		for range 4 {
			c := g.connection()
			want, got := byList(all, c), set.Decide(c)
			outcomes[got.Reason]++
			if got.Allowed != want.Allowed || got.Reason != want.Reason || got.By != want.By || !slices.Equal(got.DryRun, want.DryRun) {
				t.Fatalf("%+v, %d policies: the list says %+v, the index %+v", c, len(all), want, got)
			}
		}
	}
	for r := NoAllowPolicies; r <= NoRuleMatched; r++ {
		if outcomes[r] < 500 {
			t.Errorf("only %d cases of %q: the generator proves too little", outcomes[r], r)
		}
	}
	if filed < 1000 {
		t.Error("hardly a rule was filed under something: the test compared a list with itself")
	}
}

// shapes are ways in which thousands of policies look alike but for one field. The connection of conn(web) meets one.
var shapes = map[string]func(i int) mesh.Match{
	"principal":        func(i int) mesh.Match { return mesh.Match{Principals: exact(fmt.Sprintf("td/ns/shop/sa/app-%d", i))} },
	"principal prefix": func(i int) mesh.Match { return mesh.Match{Principals: prefix(fmt.Sprintf("td/ns/team-%d/", i))} },
	"namespace":        func(i int) mesh.Match { return mesh.Match{Namespaces: exact(fmt.Sprintf("team-%d", i))} },
	"account": func(i int) mesh.Match {
		return mesh.Match{ServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: fmt.Sprint(i)}}}
	},
	"source": func(i int) mesh.Match {
		return mesh.Match{SourceIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)}), 32)}}
	},
	// All name the connection's own principal, so that only what comes after it tells them apart.
	"one principal, ports": func(i int) mesh.Match {
		return mesh.Match{Principals: exact(web.Principal()), DestinationPorts: []uint16{uint16(10_000 + i)}}
	},
}

func shaped(n int, shape func(i int) mesh.Match) []*mesh.Policy {
	out := make([]*mesh.Policy, n)
	for i := range out {
		out[i] = policy(fmt.Sprint("p", i), mesh.Deny, shape(i))
	}
	return out
}

// TestIndexLooksAtFew: the point of it.
func TestIndexLooksAtFew(t *testing.T) {
	for name, shape := range shapes {
		x := arranged(shaped(1000, shape))
		if len(x.everywhere) > 0 {
			t.Errorf("%s: %d rules are looked at for every connection", name, len(x.everywhere))
		}
	}
	x := arranged(shaped(20, func(int) mesh.Match { return mesh.Match{NotPrincipals: exact("a")} }))
	if len(x.everywhere) != 20 {
		t.Errorf("control: of 20 rules that any connection may match %d are looked at", len(x.everywhere))
	}
}

func TestIndexDoesNotAllocate(t *testing.T) {
	for name, shape := range shapes {
		set := Set{NewIndex(shaped(100, shape)), nil, NewIndex(shaped(3, shape))}
		c := conn(web)
		if n := testing.AllocsPerRun(100, func() { set.Decide(c) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkDecideMany compares the index with the list; none of the policies matches, so that the list is walked to its end.
func BenchmarkDecideMany(b *testing.B) {
	const n = 10_000
	for name, shape := range shapes {
		policies := shaped(n, shape)
		set := Set{NewIndex(policies)}
		c := conn(web)
		b.Run(name+"/index", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				set.Decide(c)
			}
		})
		b.Run(name+"/list", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				byList(policies, c)
			}
		})
		b.Run(name+"/build", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				arranged(policies)
			}
		})
	}
}

// arranged is an index that has been asked.
func arranged(policies []*mesh.Policy) *Index {
	x := NewIndex(policies)
	Set{x}.Prepare()
	return x
}

// TestArrangedWhenAsked: an index that nobody asks costs nothing but its list, and the first who ask may be several at once.
func TestArrangedWhenAsked(t *testing.T) {
	x := NewIndex(shaped(100, func(int) mesh.Match { return mesh.Match{NotPrincipals: exact("a")} }))
	if len(x.everywhere) > 0 {
		t.Error("arranged before anybody asked")
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if d := (Set{x}).Decide(conn(web)); d.By != x.policies[0] {
				t.Errorf("decided by %v", d.By)
			}
		})
	}
	group.Wait()
}
