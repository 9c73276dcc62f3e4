// SPDX-License-Identifier: Apache-2.0

package nodenet_test

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func TestAsOrdinaryUser(t *testing.T) { nstest.AsOrdinaryUser(t, "^Test") }

func apply(t testing.TB, n *netns.NS, p nodenet.Plan) bool {
	t.Helper()
	changed, err := nodenet.Apply(t.Context(), n, p)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// alone is a namespace with an underlay link that leads nowhere.
func alone(t *testing.T, h nodenet.Host) *netns.NS {
	t.Helper()
	root, n := nstest.New(t), nstest.New(t)
	attach(t, root, n, "p-alone", h.Addresses)
	return n
}

func underlay() nodenet.Underlay {
	return nodenet.Underlay{Bridge: "underlay", Subnets: prefixes("172.18.0.0/24", "fd00:172:18::/64")}
}

func attach(t *testing.T, root, member *netns.NS, port string, addresses []netip.Addr) {
	t.Helper()
	if err := underlay().Create(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	if err := nodenet.Prepare(t.Context(), member); err != nil {
		t.Fatal(err)
	}
	if err := underlay().Attach(t.Context(), root, member, nodenet.Member{Port: port, Addresses: addresses}); err != nil {
		t.Fatal(err)
	}
}

func TestApplyEveryPlan(t *testing.T) {
	for name, c := range configs() {
		t.Run(name, func(t *testing.T) {
			n, p := alone(t, c.Self), plan(t, c)
			if !apply(t, n, p) {
				t.Error("first Apply changed nothing")
			}
			got, err := nodenet.Dump(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(p.Nftables(), got[max(strings.Index(got, "table"), 0):]); len(p.Nftables()) > 0 && d != "" {
				t.Errorf("installed (-plan +dump):\n%s", d)
			}
			if apply(t, n, p) {
				d, _ := nodenet.Diff(t.Context(), n, p)
				t.Errorf("second Apply changed something; now %q", d)
			}
			for range 2 {
				if err := nodenet.Remove(t.Context(), n); err != nil {
					t.Fatal(err)
				}
				if left, err := nodenet.Dump(t.Context(), n); err != nil || left != "" {
					t.Errorf("Remove left %q, %v", left, err)
				}
			}
		})
	}
}

func TestRepair(t *testing.T) {
	c := configs()["dual"]
	n, p := alone(t, c.Self), plan(t, c)
	apply(t, n, p)
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "ambientlab-nodenet"}
	for says, damage := range map[string]func() error{
		"# not of this plan: Verdict": func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			conn.InsertRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: "services"}, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
			return conn.Flush()
		},
		"missing: chain": func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			conn.DelTable(table)
			return conn.Flush()
		},
		"missing: route 10.244.1.0/24": func() error {
			return netlink.RouteDel(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4(10, 244, 1, 0).To4(), Mask: net.CIDRMask(24, 32)}})
		},
		"setting net/ipv4/ip_forward": func() error {
			return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644)
		},
	} {
		nstest.In(t, n, damage)
		d, err := nodenet.Diff(t.Context(), n, p)
		if err != nil || !strings.Contains(strings.Join(d, "\n"), says) {
			t.Errorf("Diff = %q, %v; want %q", d, err, says)
		}
		if !apply(t, n, p) {
			t.Errorf("%s: Apply changed nothing", says)
		}
		if d, err := nodenet.Diff(t.Context(), n, p); err != nil || len(d) != 0 {
			t.Errorf("%s: after the repair: %q, %v", says, d, err)
		}
	}
}

func TestApplyWithoutUnderlayNamesIt(t *testing.T) {
	n := nstest.New(t)
	_, err := nodenet.Apply(t.Context(), n, plan(t, configs()["dual"]))
	if err == nil || !strings.Contains(err.Error(), "eth0") || !strings.Contains(err.Error(), "attached to the underlay") {
		t.Errorf("Apply = %v", err)
	}
}

// TestGoldenIsWhatNftShows compares what nft makes of a golden file with what it shows of the applied plan.
func TestGoldenIsWhatNftShows(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		if nft, err = exec.LookPath("/usr/sbin/nft"); err != nil {
			t.Skip("nft is not installed (Debian package nftables)")
		}
	}
	run := func(n *netns.NS, stdin string, args ...string) string {
		var out []byte
		nstest.In(t, n, func() (err error) {
			c := exec.Command(nft, args...)
			c.Stdin = strings.NewReader(stdin)
			if out, err = c.CombinedOutput(); err != nil {
				t.Logf("nft %v: %s", args, out)
			}
			return err
		})
		return string(out)
	}
	for name, c := range configs() {
		if name == "outside" {
			continue // it has no rules
		}
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", name+".golden"))
			if err != nil {
				t.Fatal(err)
			}
			rules := string(text[strings.Index(string(text), "table inet"):])
			loaded, applied := nstest.New(t), alone(t, c.Self)
			run(loaded, rules, "-f", "-")
			apply(t, applied, plan(t, c))
			want, got := run(loaded, "", "list", "ruleset"), run(applied, "", "list", "ruleset")
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("nft list ruleset (-golden +applied):\n%s", d)
			}
			if d := cmp.Diff(rules, got); d != "" {
				t.Logf("this nft prints in another way (-golden +nft):\n%s", d)
			}
		})
	}
}
