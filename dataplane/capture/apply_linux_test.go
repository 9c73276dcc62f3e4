// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func TestAsOrdinaryUser(t *testing.T) { nstest.AsOrdinaryUser(t, "^Test") }

func apply(t testing.TB, n *netns.NS, p capture.Plan) bool {
	t.Helper()
	changed, err := capture.Apply(t.Context(), n, p)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func dump(t *testing.T, n *netns.NS) string {
	t.Helper()
	s, err := capture.Dump(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// command runs a system tool in the namespace; a fork takes the namespace of the thread that does it.
func command(t *testing.T, n *netns.NS, stdin, name string, args ...string) string {
	t.Helper()
	var out []byte
	nstest.In(t, n, func() (err error) {
		c := exec.Command(name, args...)
		c.Stdin = strings.NewReader(stdin)
		if out, err = c.CombinedOutput(); err != nil {
			t.Logf("%s %v: %s", name, args, out)
		}
		return err
	})
	return string(out)
}

func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed (Debian packages nftables and iptables)", name)
	return ""
}

func TestApplyEveryPlan(t *testing.T) {
	for name, o := range variants() {
		t.Run(name, func(t *testing.T) {
			n, p := nstest.New(t), capture.NewPlan(o)
			if !apply(t, n, p) {
				t.Error("first Apply: nothing changed")
			}
			first := dump(t, n)
			if !strings.HasPrefix(first, p.Nftables()) {
				t.Errorf("installed (-plan +dump):\n%s", cmp.Diff(p.Nftables(), first))
			}
			if apply(t, n, p) {
				t.Error("second Apply: changed something")
			}
			if d := cmp.Diff(first, dump(t, n)); d != "" {
				t.Errorf("second Apply changed the dump:\n%s", d)
			}
			if d, err := capture.Diff(t.Context(), n, p); err != nil || len(d) != 0 {
				t.Errorf("Diff = %q, %v", d, err)
			}
			for i := range 2 {
				if err := capture.Remove(t.Context(), n); err != nil {
					t.Fatalf("Remove %d: %v", i+1, err)
				}
				if left := dump(t, n); left != "" {
					t.Errorf("Remove %d left\n%s", i+1, left)
				}
				nothingLeft(t, n)
			}
		})
	}
}

// nothingLeft looks without capture's own eyes.
func nothingLeft(t *testing.T, n *netns.NS) {
	t.Helper()
	nstest.In(t, n, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := conn.ListTables()
		for _, table := range tables {
			t.Errorf("left: table %s", table.Name)
		}
		if err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if r.Priority != 0 && r.Priority < 32766 {
					t.Errorf("left: %s", r)
				}
			}
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: 100}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				t.Errorf("left: %s", r)
			}
		}
		return nil
	})
}

// TestGoldenIsWhatNftShows loads each golden file with nft into one namespace, applies the plan to another, and lets nft print both.
func TestGoldenIsWhatNftShows(t *testing.T) {
	nft := tool(t, "nft")
	for name, o := range variants() {
		t.Run(name, func(t *testing.T) {
			loaded, applied := nstest.New(t), nstest.New(t)
			text, err := os.ReadFile(filepath.Join("testdata", name+".nft"))
			if err != nil {
				t.Fatal(err)
			}
			command(t, loaded, string(text), nft, "-f", "-")
			apply(t, applied, capture.NewPlan(o))
			want, got := command(t, loaded, "", nft, "list", "ruleset"), command(t, applied, "", nft, "list", "ruleset")
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("nft list ruleset (-golden +applied):\n%s", d)
			}
			if d := cmp.Diff(string(text), got); d != "" {
				// Versions of nft differ in how they print; that both rulesets are one was shown above.
				t.Logf("this nft prints in another way (-golden +nft):\n%s", d)
			}
			// What nft loaded is the plan for us too.
			if d, err := capture.Diff(t.Context(), loaded, capture.NewPlan(o)); err != nil || len(d) == 0 {
				t.Errorf("Diff = %q, %v; want only routing", d, err)
			} else if joined := strings.Join(d, "\n"); strings.Contains(joined, "chain") {
				t.Errorf("rules that nft loaded from the golden file differ:\n%s", joined)
			}
		})
	}
}

// TestIPTablesAcceptsTheText loads the other rendering and reads it back with iptables-save.
func TestIPTablesAcceptsTheText(t *testing.T) {
	for f, prefix := range map[capture.Family]string{capture.IPv4: "iptables", capture.IPv6: "ip6tables"} {
		restore, save := tool(t, prefix+"-nft-restore"), tool(t, prefix+"-nft-save")
		n := nstest.New(t)
		text := capture.NewPlan(capture.Options{IPv4: true, IPv6: true, DNS: true}).IPTablesRestore(f)
		command(t, n, text, restore, "--noflush")
		got := command(t, n, "", save)
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "-A") && !strings.Contains(got, line) {
				t.Errorf("%s: iptables-save does not show %q in\n%s", f, line, got)
			}
		}
	}
}

// TestRepair breaks an installed plan in every way that Diff tells apart, and lets Apply mend it.
func TestRepair(t *testing.T) {
	dual := capture.NewPlan(capture.Options{IPv4: true, IPv6: true, DNS: true})
	inNft := func(change func(*nftables.Conn, *nftables.Table) error) func() error {
		return func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			if err := change(conn, &nftables.Table{Family: nftables.TableFamilyINet, Name: "istio-ambient-nat"}); err != nil {
				return err
			}
			return conn.Flush()
		}
	}
	for name, c := range map[string]struct {
		damage func() error
		says   string
	}{
		"a table is gone": {inNft(func(conn *nftables.Conn, nat *nftables.Table) error {
			conn.DelTable(nat)
			return nil
		}), "missing: chain istio-ambient-nat prerouting"},
		"a rule is gone": {inNft(func(conn *nftables.Conn, nat *nftables.Table) error {
			rules, err := conn.GetRules(nat, &nftables.Chain{Name: "istio-output"})
			if err != nil {
				return err
			}
			return conn.DelRule(rules[len(rules)-1])
		}), "missing: chain istio-ambient-nat istio-output rule 10: ip6 daddr != ::1"},
		"a rule is added": {inNft(func(conn *nftables.Conn, nat *nftables.Table) error {
			conn.InsertRule(&nftables.Rule{Table: nat, Chain: &nftables.Chain{Name: "istio-output"}, Exprs: []expr.Any{
				&expr.Verdict{Kind: expr.VerdictReturn},
			}})
			return nil
		}), "# not of this plan: Verdict"},
		"a chain is added": {inNft(func(conn *nftables.Conn, nat *nftables.Table) error {
			conn.AddChain(&nftables.Chain{Table: nat, Name: "guest"})
			return nil
		}), "unexpected: chain istio-ambient-nat guest"},
		"the policy rule is gone": {func() error {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table = netlink.FAMILY_V4, 32764, 100
			return netlink.RuleDel(r)
		}, "missing: rule ipv4 32764: fwmark 0x111/0xfff lookup 100"},
		"the policy rule has another mark": {func() error {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table, r.Mark = netlink.FAMILY_V6, 32764, 100, 0x222
			return netlink.RuleAdd(r)
		}, "unexpected: rule ipv6 32764: fwmark 0x222"},
		"the route is gone": {func() error {
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: 100}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			return netlink.RouteDel(&routes[0])
		}, "missing: route ipv6 table 100: local default dev lo"},
	} {
		t.Run(name, func(t *testing.T) {
			n := nstest.New(t)
			apply(t, n, dual)
			sound := dump(t, n)
			nstest.In(t, n, c.damage)
			d, err := capture.Diff(t.Context(), n, dual)
			if err != nil || !strings.Contains(strings.Join(d, "\n"), c.says) {
				t.Errorf("Diff = %q, %v; want %q", d, err, c.says)
			}
			if !apply(t, n, dual) {
				t.Error("Apply changed nothing")
			}
			if d := cmp.Diff(sound, dump(t, n)); d != "" {
				t.Errorf("after the repair (-before +after):\n%s", d)
			}
		})
	}
}

func TestChangeOfPlan(t *testing.T) {
	n := nstest.New(t)
	with, without := capture.NewPlan(capture.Options{IPv4: true, IPv6: true, DNS: true}), capture.NewPlan(capture.Options{IPv4: true})
	apply(t, n, with)
	if !apply(t, n, without) {
		t.Error("Apply of another plan changed nothing")
	}
	if got := dump(t, n); strings.Contains(got, "raw") || strings.Contains(got, "ipv6") || !strings.Contains(got, "rule ipv4") {
		t.Errorf("left of the plan before:\n%s", got)
	}
}

func TestOthersAreLeftAlone(t *testing.T) {
	n := nstest.New(t)
	guest := &nftables.Table{Family: nftables.TableFamilyINet, Name: "application"}
	nstest.In(t, n, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.AddTable(guest)
		return conn.Flush()
	})
	apply(t, n, capture.NewPlan(capture.Options{IPv4: true}))
	if err := capture.Remove(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	nstest.In(t, n, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		_, err = conn.ListTableOfFamily(guest.Name, guest.Family)
		return err
	})
}

func TestNoIPv6OnLoopback(t *testing.T) {
	n := nstest.New(t)
	nstest.In(t, n, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("1"), 0o644)
	})
	p := capture.NewPlan(capture.Options{IPv4: true, IPv6: true})
	apply(t, n, p)
	if got := dump(t, n); strings.Contains(got, "route ipv6") || !strings.Contains(got, "route ipv4") {
		t.Errorf("routes:\n%s", got)
	}
	if apply(t, n, p) {
		t.Error("second Apply changed something")
	}
}

func TestClosedNamespaceIsNamed(t *testing.T) {
	n := nstest.New(t)
	d, err := n.Dup()
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	_, err = capture.Apply(t.Context(), d, capture.NewPlan(capture.Options{IPv4: true}))
	if !errors.Is(err, os.ErrClosed) || !regexp.MustCompile(`apply redirection in net:\[\d+\]`).MatchString(err.Error()) {
		t.Errorf("Apply = %v", err)
	}
}
