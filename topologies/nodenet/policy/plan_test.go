// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

var update = flag.Bool("update", false, "rewrite golden files")

// parsed is a policy whose spec is YAML.
func parsed(t testing.TB, ns, name, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	if err := yaml.UnmarshalStrict([]byte(spec), &np.Spec); err != nil {
		t.Fatal(err)
	}
	return np
}

func pod(ns, name, node string, ips ...string) Pod {
	p := Pod{Namespace: ns, Name: name, Node: node, Labels: map[string]string{"app": name}}
	for _, ip := range ips {
		p.IPs = append(p.IPs, netip.MustParseAddr(ip))
	}
	return p
}

// shop is a cluster of two nodes, of which node1's rules are planned.
func shop(t testing.TB) Config {
	cart := pod("shop", "cart", "node1", "10.244.0.3", "fd00:10:244::3")
	cart.Ports = []Port{{"http", corev1.ProtocolTCP, 8080}, {"http-alt", corev1.ProtocolTCP, 8081}}
	ledger := pod("plain", "ledger", "node2", "10.244.1.3", "fd00:10:244:1::3")
	ledger.Ports = []Port{{"http", corev1.ProtocolTCP, 9090}}
	return Config{
		Node: "node1", PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64")},
		Namespaces: map[string]map[string]string{"shop": {"team": "a"}, "plain": {"team": "b"}},
		Pods: []Pod{
			pod("shop", "web", "node1", "10.244.0.2", "fd00:10:244::2"), cart, ledger,
			pod("shop", "far", "node2", "10.244.1.2", "fd00:10:244:1::2"), pod("plain", "batch", "node1", "10.244.0.4", "fd00:10:244::4"),
		},
		Policies: []*networkingv1.NetworkPolicy{
			parsed(t, "shop", "cart", `{podSelector: {matchLabels: {app: cart}}, ingress: [
				{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: batch}}}], ports: [{port: http}, {port: 9000, endPort: 9100}, {port: 53, protocol: UDP}]},
				{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.0.0/16]}}, {ipBlock: {cidr: "2001:db8::/32"}}], ports: [{protocol: SCTP}]}]}`),
			parsed(t, "shop", "out", `{podSelector: {matchExpressions: [{key: app, operator: In, values: [cart, web]}]}, policyTypes: [Egress], egress: [
				{to: [{namespaceSelector: {}}], ports: [{port: http}]}, {ports: [{port: 443}]}]}`),
			parsed(t, "plain", "closed", `{podSelector: {}, policyTypes: [Ingress]}`),
		},
	}
}

func TestGoldenPlan(t *testing.T) {
	p := NewPlan(shop(t))
	path := filepath.Join("testdata", "shop.golden")
	got := p.Nftables()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" || len(p.Problems) > 0 {
		t.Errorf("problems %v; %s (-golden +plan; run with -update if the plan is right):\n%s", p.Problems, path, d)
	}
}

func TestPlanDoesNotDependOnOrder(t *testing.T) {
	a, b := shop(t), shop(t)
	slices.Reverse(b.Pods)
	slices.Reverse(b.Policies)
	if d := cmp.Diff(NewPlan(a).Nftables(), NewPlan(b).Nftables()); d != "" {
		t.Error(d)
	}
}

func TestWithoutPoliciesThereIsNoTable(t *testing.T) {
	c := shop(t)
	c.Policies = nil
	if p := NewPlan(c); p.Nftables() != "" {
		t.Error(p.Nftables())
	}
}

// A policy with a mistake is named and left out; others stand.
func TestMistakesAreNamedAndLeftOut(t *testing.T) {
	want := NewPlan(shop(t))
	c := shop(t)
	c.Policies = append(c.Policies,
		parsed(t, "shop", "protocol", `{ingress: [{ports: [{protocol: ICMP}]}]}`),
		parsed(t, "shop", "cidr", `{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}`),
		parsed(t, "shop", "selector", `{podSelector: {matchExpressions: [{key: a, operator: Like}]}}`))
	got := NewPlan(c)
	if d := cmp.Diff(want.Nftables(), got.Nftables()); d != "" {
		t.Errorf("the plan (-without the mistakes +with):\n%s", d)
	}
	var said []string
	for _, p := range got.Problems {
		said = append(said, p.Error())
	}
	if d := cmp.Diff([]string{
		`NetworkPolicy shop/cidr: spec.egress[0].to[0].ipBlock.cidr: "10.0.0.0/33" is not a CIDR like 10.0.0.0/8`,
		`NetworkPolicy shop/protocol: spec.ingress[0].ports[0].protocol: "ICMP" is none of TCP, UDP, SCTP`,
		`NetworkPolicy shop/selector: spec.podSelector: "Like" is not a valid label selector operator`,
	}, said); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
}

// An address goes from a pod that ends to the next one; what two claim is said.
func TestOneAddressIsOnePods(t *testing.T) {
	c := shop(t)
	old := pod("shop", "aaa", "node1", "10.244.0.2")
	old.Ending = true
	c.Pods = append(c.Pods, old)
	p := NewPlan(c)
	if len(p.Problems) != 1 || !strings.Contains(p.Problems[0].Error(), "pods shop/web and shop/aaa both have the address 10.244.0.2") {
		t.Errorf("problems: %v", p.Problems)
	}
	p.Problems = nil
	if d := cmp.Diff(NewPlan(shop(t)).Nftables(), p.Nftables()); d != "" {
		t.Errorf("the ending pod changes the plan:\n%s", d)
	}
}

// Until its address is known to be a pod's, nothing gets to it or comes from it.
func TestStrangersAreClosed(t *testing.T) {
	c := shop(t)
	new4, new6, other := netip.MustParseAddr("10.244.0.77"), netip.MustParseAddr("fd00:10:244::77"), netip.MustParseAddr("10.244.1.77")
	out4, out6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")
	closed := NewPlan(c)
	for _, p := range []packet{{from: new4, to: out4}, {from: out4, to: new4}, {from: new6, to: out6}, {from: out6, to: new6}} {
		if closed.passes(p) {
			t.Errorf("%s to %s passes", p.from, p.to)
		}
	}
	if !closed.passes(packet{from: out4, to: other}) {
		t.Error("control: addresses of another node are that node's to judge")
	}
	c.Pods = append(c.Pods, pod("free", "new", "node1", "10.244.0.77", "fd00:10:244::77"))
	if !NewPlan(c).passes(packet{from: out4, to: new4}) {
		t.Error("control: once it is known, a pod that no policy selects is open")
	}
}

func TestLongNamesAreKeptApart(t *testing.T) {
	c := shop(t)
	c.Policies = nil
	for _, last := range []string{"a", "b"} {
		c.Policies = append(c.Policies, parsed(t, "shop", strings.Repeat("x", 252)+last, `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`))
	}
	names := map[string]bool{}
	for _, s := range NewPlan(c).sets {
		if len(s.name) > 255 {
			t.Errorf("the name has %d bytes: %s", len(s.name), s.name)
		}
		names[s.name] = true
	}
	if len(names) != 6 { // two policies and the strangers, each of two families
		t.Errorf("names: %v", names)
	}
}

func TestSpans(t *testing.T) {
	text := func(spans []span) (out []string) {
		for _, s := range spans {
			out = append(out, s.String())
		}
		return out
	}
	prefix := func(s string) span { return spanOf(netip.MustParsePrefix(s)) }
	for _, tc := range []struct {
		name string
		got  []span
		want []string
	}{
		{"sorted and merged", union([]span{prefix("10.0.1.0/24"), prefix("::/0"), prefix("10.0.0.0/24"), prefix("10.0.0.5/32")}), []string{"10.0.0.0/23", "::/0"}},
		{"host bits do not count", union([]span{prefix("10.1.2.3/8")}), []string{"10.0.0.0/8"}},
		{"a hole", without([]span{prefix("10.0.0.0/29")}, []span{prefix("10.0.0.3/32")}), []string{"10.0.0.0-10.0.0.2", "10.0.0.4/30"}},
		{"holes at both ends", without([]span{prefix("0.0.0.0/0")}, []span{prefix("0.0.0.0/1"), prefix("255.0.0.0/8")}), []string{"128.0.0.0-254.255.255.255"}},
		{"nothing is left", without([]span{prefix("10.0.0.0/31")}, []span{prefix("10.0.0.0/32"), prefix("10.0.0.1/32")}), nil},
		{"of another family", without([]span{prefix("::/0")}, []span{prefix("0.0.0.0/0")}), []string{"::/0"}},
	} {
		if d := cmp.Diff(tc.want, text(tc.got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
	}
}

func TestObjects(t *testing.T) {
	np := parsed(t, "shop", "p", "{}")
	meta := func(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }
	running := &corev1.Pod{ObjectMeta: meta("shop", "web"), Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}}}
	running.Spec.NodeName = "node1"
	running.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}, {ContainerPort: 81}}}}
	host := &corev1.Pod{ObjectMeta: meta("shop", "host"), Spec: corev1.PodSpec{HostNetwork: true}}
	done := &corev1.Pod{ObjectMeta: meta("shop", "done"), Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}
	c := Objects(&source.Objects{
		NetworkPolicies: map[string]*networkingv1.NetworkPolicy{"shop/p": np}, Namespaces: map[string]*corev1.Namespace{"shop": {ObjectMeta: meta("", "shop")}},
		Pods: map[string]*corev1.Pod{"shop/web": running, "shop/host": host, "shop/done": done},
	})
	if len(c.Pods) != 1 || c.Pods[0].name() != "shop/web" || len(c.Pods[0].IPs) != 2 || !slices.Equal(c.Pods[0].Ports, []Port{{"http", corev1.ProtocolTCP, 80}}) {
		t.Errorf("pods: %+v", c.Pods)
	}
	if c.Namespaces["shop"]["kubernetes.io/metadata.name"] != "shop" || len(c.Policies) != 1 {
		t.Errorf("%+v", c)
	}
}

// A node with 100 of 2 000 pods, each selected by 10 of 200 policies.
func BenchmarkPlan(b *testing.B) {
	c := Config{Node: "node0", Namespaces: map[string]map[string]string{"shop": {"team": "a"}}}
	for i := range 2000 {
		p := pod("shop", fmt.Sprint("p", i), fmt.Sprint("node", i%20), fmt.Sprintf("10.244.%d.%d", i%20, i/20), fmt.Sprintf("fd00:10:244:%x::%x", i%20, i/20))
		p.Labels = map[string]string{"app": fmt.Sprint("a", i%20), "tier": fmt.Sprint("t", i/20%20)}
		c.Pods = append(c.Pods, p)
	}
	for i := range 200 {
		c.Policies = append(c.Policies, parsed(b, "shop", fmt.Sprint("n", i), fmt.Sprintf(`{podSelector: {matchLabels: {tier: t%d}},
			ingress: [{from: [{podSelector: {matchLabels: {app: a%d}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 8080}]}]}`, i%20, i/10)))
	}
	b.ReportAllocs()
	for b.Loop() {
		if p := NewPlan(c); len(p.chains) != 102 || len(p.Problems) > 0 {
			b.Fatal(len(p.chains), p.Problems)
		}
	}
}
