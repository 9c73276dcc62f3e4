// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
	"github.com/ambientlab/ambientlab/topologies/nodenet/policy"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func TestAsOrdinaryUser(t *testing.T) { nstest.AsOrdinaryUser(t, "^Test") }

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func node(name string, i int) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:10:244:%d::/64", i)}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: name},
			{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.18.0.%d", i+2)},
			{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("fc00:f853::%d", i+2)},
		}},
	}
}

func TestSettings(t *testing.T) {
	env := map[string]string{"NODE_NAME": "worker", "POD_SUBNETS": "10.244.0.0/16, fd00:10:244::1/56"}
	got, err := settingsFrom(func(k string) string { return env[k] })
	want := settings{node: "worker", cluster: prefixes("10.244.0.0/16", "fd00:10:244::/56"), conf: "/etc/cni/net.d/10-nodenet.conflist"}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(settings{}), cmpopts.EquateComparable(netip.Prefix{})); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	_, err = settingsFrom(func(string) string { return "" })
	for _, want := range []string{"NODE_NAME is not set", "POD_SUBNETS"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("an empty environment: %v, want %q", err, want)
		}
	}
}

func TestConfig(t *testing.T) {
	nodes := map[string]*corev1.Node{"a": node("a", 0), "b": node("b", 1), "young": {ObjectMeta: metav1.ObjectMeta{Name: "young"}}}
	got, err := config(nodes, "b", prefixes("10.244.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	host := func(name string, i int) nodenet.Host {
		return nodenet.Host{
			Name:       name,
			Addresses:  []netip.Addr{netip.MustParseAddr(fmt.Sprintf("172.18.0.%d", i+2)), netip.MustParseAddr(fmt.Sprintf("fc00:f853::%d", i+2))},
			PodSubnets: prefixes(fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:10:244:%d::/64", i)),
		}
	}
	want := nodenet.Config{Self: host("b", 1), Peers: []nodenet.Host{host("a", 0)}, ClusterSubnets: prefixes("10.244.0.0/16")}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	for name, says := range map[string]string{"young": "no pod subnet yet", "nobody": "not in the cluster"} {
		if _, err := config(nodes, name, nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", name, err, says)
		}
	}
}

func TestConflist(t *testing.T) {
	for plain, end := range map[bool]string{false: "]}", true: " {plainpackets 0 {[] []}}]}"} {
		got := conflistOf(t, 1400, asked{Links: nodenet.Links{PlainPackets: plain}})
		if want := "{0.4.0 [{nodad 0 {[] []}} {ptp 1400 {[[{10.244.1.0/24}] [{fd00:10:244:1::/64}]] [{0.0.0.0/0} {::/0}]}} {portmap 0 {[] []}}" + end; got != want {
			t.Errorf("plain %v: %s, want %s", plain, got, want)
		}
	}
}

// conflistOf is what a CNI configuration says, in short.
func conflistOf(t *testing.T, mtu int, links asked) string {
	t.Helper()
	text, err := conflist(prefixes("10.244.1.0/24", "fd00:10:244:1::/64"), mtu, links)
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		CNIVersion string
		Plugins    []struct {
			Type string
			MTU  int
			IPAM struct {
				Ranges [][]struct{ Subnet string }
				Routes []struct{ Dst string }
			}
		}
	}
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(c)
}

// fixed are objects that do not change by themselves.
type fixed struct {
	source.Source
	objects *source.Objects
}

func (f *fixed) Load() *source.Objects { return f.objects }

// TestReconcile: a node gets routes, rules and its CNI configuration once; a policy with a mistake is complained of once, and
// the others are enforced.
func TestReconcile(t *testing.T) {
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Connect(t, nstest.End{NS: ns, Name: nodenet.UnderlayLink, Addresses: []string{"172.18.0.2/16", "fc00:f853::2/64"}}, nstest.End{NS: peer, Name: "eth0"})
	if err := nodenet.WaitUp(t.Context(), ns, nodenet.UnderlayLink); err != nil {
		t.Fatal(err)
	}
	cart := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart", Labels: map[string]string{"app": "cart"}},
		Spec:       corev1.PodSpec{NodeName: "a"},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.0.9"}}},
	}
	o := &source.Objects{
		Nodes: map[string]*corev1.Node{"a": node("a", 0), "b": node("b", 1)}, Pods: map[string]*corev1.Pod{"shop/cart": cart},
		Namespaces:      map[string]*corev1.Namespace{"shop": {ObjectMeta: metav1.ObjectMeta{Name: "shop"}}},
		NetworkPolicies: map[string]*networkingv1.NetworkPolicy{"shop/deny": denyAll("deny"), "shop/bad": badPolicy("bad")},
	}
	var log strings.Builder
	a := &agent{
		settings: settings{node: "a", cluster: prefixes("10.244.0.0/16", "fd00:10:244::/56"), conf: filepath.Join(t.TempDir(), "10-nodenet.conflist")},
		log:      slog.New(slog.NewTextHandler(&log, nil)), objects: &fixed{objects: o},
	}
	reconcile := func() {
		t.Helper()
		nstest.In(t, ns, func() error {
			problems, err := a.reconcile(t.Context(), o)
			a.complain(problems)
			return err
		})
	}
	reconcile()
	rules, err := policy.Dump(t.Context(), ns)
	network, err2 := nodenet.Dump(t.Context(), ns)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	for _, want := range []string{"route 10.244.1.0/24 via 172.18.0.3", "ip saddr 10.244.0.0/24 jump leaving", "not allowed by shop/deny"} {
		if !strings.Contains(network+rules, want) {
			t.Errorf("no %q in\n%s%s", want, network, rules)
		}
	}
	if _, err := os.Stat(a.conf); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(a.conf, []byte("a chained plugin's"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := log.String()
	reconcile()
	if kept, err := os.ReadFile(a.conf); err != nil || string(kept) != "a chained plugin's" {
		t.Errorf("what another wrote to the CNI configuration became %q, %v", kept, err)
	}
	if !strings.Contains(before, "shop/bad") || log.String() != before {
		t.Errorf("log, first:\n%s\nthen:\n%s", before, log.String()[len(before):])
	}
}

// TestReconcileLinks: a node's links are as its annotation says, the last good ones are kept, and all is undone with it.
func TestReconcileLinks(t *testing.T) {
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Connect(t, nstest.End{NS: ns, Name: nodenet.UnderlayLink, Addresses: []string{"172.18.0.2/16", "fc00:f853::2/64"}}, nstest.End{NS: peer, Name: "eth0"})
	if err := nodenet.WaitUp(t.Context(), ns, nodenet.UnderlayLink); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "10-nodenet.conflist")
	agentOf := func() *agent {
		a := &agent{settings: settings{node: "a", cluster: prefixes("10.244.0.0/16"), conf: conf}, log: slog.New(slog.DiscardHandler)}
		a.plain = a.wasPlain()
		return a
	}
	var a *agent
	const v4, v6, narrow = "10.244.1.0/24 via 172.18.0.3 dev eth0", "fd00:10:244:1::/64 via fc00:f853::3 dev eth0", `{"mtu":9000,"plainPackets":true,"pathMTU":{"b":1400}}`
	for _, step := range []struct {
		annotation    string
		more          string // of both routes
		mtu, done     string
		plain, refuse bool
	}{
		{"", "\n", `"mtu": 1500`, "", false, false},
		{narrow, " mtu 1400\n", `"mtu": 9000`, nodenet.LinksDone(narrow), true, false},
		{`{"mtu":1}`, " mtu 1400\n", `"mtu": 9000`, nodenet.LinksDone(narrow), true, true},
		{"", "\n", `"mtu": 1500`, "", false, false},
	} {
		if !step.refuse {
			a = agentOf() // another process goes on with what the last has left
		}
		self := node("a", 0)
		self.Annotations = map[string]string{nodenet.AnnotationLinks: step.annotation}
		o := &source.Objects{Nodes: map[string]*corev1.Node{"a": self, "b": node("b", 1)}}
		var problems []string
		nstest.In(t, ns, func() (err error) { problems, err = a.reconcile(t.Context(), o); return err })
		if (len(problems) > 0) != step.refuse {
			t.Errorf("%s: %v", step.annotation, problems)
		}
		network, err := nodenet.Dump(t.Context(), ns)
		if err != nil || !strings.Contains(network, v4+step.more) || !strings.Contains(network, v6+step.more) {
			t.Errorf("%s: not both routes with %q in\n%s, %v", step.annotation, step.more, network, err)
		}
		text, err := os.ReadFile(conf)
		if err != nil || !strings.Contains(string(text), step.mtu) || strings.Contains(string(text), "plainpackets") != step.plain || !strings.Contains(string(text), step.done) {
			t.Errorf("%s: %s, %v", step.annotation, text, err)
		}
		if on, err := nodenet.Offloads(ns, nodenet.UnderlayLink); err != nil || (len(on) == 0) != step.plain {
			t.Errorf("%s: offloads %v, %v", step.annotation, on, err)
		}
	}
}

func denyAll(name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
}

func badPolicy(name string) *networkingv1.NetworkPolicy {
	p := denyAll(name)
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/33"}}}}}
	return p
}

// TestRunEndsWithItsContext: also before anything is known.
func TestRunEndsWithItsContext(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	a := &agent{log: slog.New(slog.DiscardHandler), objects: silent{}}
	if err := a.run(ctx); err != nil {
		t.Error(err)
	}
}

// silent is an API server that does not answer.
type silent struct{ source.Source }

func (silent) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (silent) Ready() <-chan struct{}        { return nil }
