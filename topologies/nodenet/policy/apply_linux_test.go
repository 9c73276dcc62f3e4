// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func TestAsOrdinaryUser(t *testing.T) { nstest.AsOrdinaryUser(t, "^Test") }

func apply(t testing.TB, n *netns.NS, p Plan) bool {
	t.Helper()
	changed, err := Apply(t.Context(), n, p)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func dump(t testing.TB, n *netns.NS) string {
	t.Helper()
	text, err := Dump(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestApplyReadsBackWhatItWrote(t *testing.T) {
	n, p := nstest.New(t), NewPlan(shop(t))
	if apply(t, n, Plan{}) {
		t.Error("no policies, and yet something changed")
	}
	if !apply(t, n, p) {
		t.Error("the first Apply changed nothing")
	}
	if d := cmp.Diff(p.Nftables(), dump(t, n)); d != "" {
		t.Errorf("installed (-plan +dump):\n%s", d)
	}
	if !strings.Contains(dump(t, n), "stands in for a CNI project") {
		t.Error("the dump does not say what it stands in for")
	}
	if apply(t, n, p) {
		d, _ := Diff(t.Context(), n, p)
		t.Errorf("the second Apply changed something; now %q", d)
	}
	for range 2 {
		if err := Remove(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		if left := dump(t, n); left != "" {
			t.Errorf("Remove left %q", left)
		}
	}
}

func TestRepair(t *testing.T) {
	n, p := nstest.New(t), NewPlan(shop(t))
	apply(t, n, p)
	for says, damage := range map[string]func(*nftables.Conn){
		"# not of this plan: Verdict": func(c *nftables.Conn) {
			c.InsertRule(&nftables.Rule{Table: table(), Chain: &nftables.Chain{Name: "ingress"}, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}})
		},
		"there are 0 chains": func(c *nftables.Conn) { c.DelTable(table()) },
		"set ingress/shop/cart/0/ip": func(c *nftables.Conn) {
			s := p.sets[slices.IndexFunc(p.sets, func(s set) bool { return s.name == "ingress/shop/cart/0/ip" })].kernel(1)
			s.ID = 0
			if err := c.SetAddElements(s, set{family: ipv4, spans: []span{spanOf(netip.MustParsePrefix("192.0.2.0/24"))}}.elements()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		nstest.In(t, n, func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			damage(conn)
			return conn.Flush()
		})
		d, err := Diff(t.Context(), n, p)
		if err != nil || !strings.Contains(strings.Join(d, "\n"), says) {
			t.Errorf("Diff = %q, %v; want %q", d, err, says)
		}
		if !apply(t, n, p) {
			t.Errorf("%s: Apply changed nothing", says)
		}
		if d := cmp.Diff(p.Nftables(), dump(t, n)); d != "" {
			t.Errorf("%s: after the repair:\n%s", says, d)
		}
	}
}

// What the kernel refuses changes nothing.
func TestLastGoodRulesStay(t *testing.T) {
	n, good := nstest.New(t), NewPlan(shop(t))
	apply(t, n, good)
	bad := NewPlan(shop(t))
	bad.chains = slices.Clone(bad.chains)
	bad.chains[0].rules = append(slices.Clone(bad.chains[0].rules), rule{verb: goTo, target: "nowhere"})
	_, err := Apply(t.Context(), n, bad)
	if err == nil || !strings.Contains(err.Error(), "in a CNI project's place") {
		t.Errorf("Apply = %v", err)
	}
	if d := cmp.Diff(good.Nftables(), dump(t, n)); d != "" {
		t.Errorf("after a refused transaction:\n%s", d)
	}
}

// Many pods are one transaction too, and nodes may be written at the same time.
func TestManyPodsOnManyNodes(t *testing.T) {
	c := shop(t)
	for i := range 1200 {
		c.Pods = append(c.Pods, pod("shop", fmt.Sprint("p", i), "node2", fmt.Sprintf("10.245.%d.%d", i/100, i%100*2), fmt.Sprintf("fd00:10:245::%x", 2*i)))
	}
	p := NewPlan(c)
	spaces := []*netns.NS{nstest.New(t), nstest.New(t)}
	var wg sync.WaitGroup
	for _, n := range spaces {
		wg.Go(func() {
			if _, err := Apply(t.Context(), n, p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, n := range spaces {
		if d := cmp.Diff(p.Nftables(), dump(t, n)); d != "" {
			t.Errorf("installed (-plan +dump):\n%s", d)
		}
	}
}

// nft reads a dump, and shows the same of it as of what was applied.
func TestNftReadsThePlan(t *testing.T) {
	tool, err := exec.LookPath("nft")
	if err != nil {
		if tool, err = exec.LookPath("/usr/sbin/nft"); err != nil {
			t.Skip("nft is not installed (Debian package nftables)")
		}
	}
	run := func(n *netns.NS, stdin string, args ...string) string {
		var out []byte
		nstest.In(t, n, func() (err error) {
			c := exec.Command(tool, args...)
			c.Stdin = strings.NewReader(stdin)
			if out, err = c.CombinedOutput(); err != nil {
				t.Logf("nft %v: %s", args, out)
			}
			return err
		})
		return string(out)
	}
	p := NewPlan(shop(t))
	loaded, applied := nstest.New(t), nstest.New(t)
	run(loaded, p.Nftables(), "-f", "-")
	apply(t, applied, p)
	if d := cmp.Diff(run(loaded, "", "list", "ruleset"), run(applied, "", "list", "ruleset")); d != "" {
		t.Errorf("nft list ruleset (-text +applied):\n%s", d)
	}
}
