// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

var update = flag.Bool("update", false, "rewrite golden files")

// variants are all option combinations that make a plan.
func variants() map[string]capture.Options {
	m := map[string]capture.Options{}
	for families, o := range map[string]capture.Options{"v4": {IPv4: true}, "v6": {IPv6: true}, "dual": {IPv4: true, IPv6: true}} {
		for dns, on := range map[string]bool{"": false, "-dns": true} {
			for bypass, skip := range map[string]bool{"": false, "-bypass": true} {
				o := o
				o.DNS, o.BypassInbound = on, skip
				m[families+dns+bypass] = o
			}
		}
	}
	return m
}

// Another source of probes is the only thing that differs in a plan that has it.
func TestPlanHasItsSourceOfProbes(t *testing.T) {
	o := capture.Options{IPv4: true, IPv6: true}
	usual := capture.NewPlan(o)
	o.Probes = capture.ProbeSource{V4: netip.MustParseAddr("169.254.9.9"), V6: netip.MustParseAddr("fd16:9254:9::9")}
	want := strings.NewReplacer(mesh.ProbeSourceV4.String(), o.Probes.V4.String(), mesh.ProbeSourceV6.String(), o.Probes.V6.String()).Replace(usual.Nftables())
	if d := cmp.Diff(want, capture.NewPlan(o).Nftables()); d != "" || want == usual.Nftables() {
		t.Errorf("(-want +got):\n%s", d)
	}
	o.Probes.V6 = netip.Addr{}
	if text := capture.NewPlan(o).Nftables(); !strings.Contains(text, mesh.ProbeSourceV6.String()) || strings.Contains(text, mesh.ProbeSourceV4.String()) {
		t.Errorf("one family's alone:\n%s", text)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
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
}

func TestGoldenPlans(t *testing.T) {
	for name, o := range variants() {
		t.Run(name, func(t *testing.T) {
			p := capture.NewPlan(o)
			golden(t, name+".nft", p.Nftables())
			for f, on := range map[capture.Family]bool{capture.IPv4: o.IPv4, capture.IPv6: o.IPv6} {
				text := p.IPTablesRestore(f)
				if on {
					golden(t, name+"."+f.String()+".iptables", text)
				} else if text != "" {
					t.Errorf("%s is off, but its rules are\n%s", f, text)
				}
			}
		})
	}
}

func TestNoFamilyNoRules(t *testing.T) {
	p := capture.NewPlan(capture.Options{DNS: true})
	if text := p.Nftables(); text != "" || len(p.Tables)+len(p.Routed) != 0 {
		t.Errorf("a plan for no family contains %+v\n%s", p, text)
	}
}

// TestOrderOfReference holds the order of the rules in the nat table of upstream (reference: in-pod rules), where order decides.
func TestOrderOfReference(t *testing.T) {
	text := capture.NewPlan(capture.Options{IPv4: true, DNS: true}).IPTablesRestore(capture.IPv4)
	at := 0
	for _, rule := range []string{
		"*nat\n",
		"-A ISTIO_PRERT -s 169.254.7.127/32 -p tcp -j ACCEPT\n",
		"-A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006\n",
		"-A ISTIO_OUTPUT -d 169.254.7.127/32 -p tcp -j ACCEPT\n",
		"-A ISTIO_OUTPUT ! -o lo -p udp -m udp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053\n",
		"-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053\n",
		"-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n",
		"-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT\n",
		"-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001\n",
		"COMMIT\n*mangle\n",
		"-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n",
		"-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n",
		"COMMIT\n*raw\n",
		"-A ISTIO_PRERT -p udp -m udp --sport 53 -m mark ! --mark 0x539/0xfff -j CT --zone 1\n",
		"-A ISTIO_OUTPUT -p udp -m udp --dport 53 -m mark --mark 0x539/0xfff -j CT --zone 1\n",
	} {
		i := strings.Index(text[at:], rule)
		if i < 0 {
			t.Fatalf("missing, or out of order: %q in\n%s", rule, text)
		}
		at += i
	}
}
