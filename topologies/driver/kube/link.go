// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// cut is a link that lets nothing through, by the topology's names in order.
type cut struct{ a, b string }

// Link implements lab.Driver. Links between nodes, or of a node to lab.DaemonAPIServer, can be cut, and no link can be impaired.
func (d *Driver) Link(a, b string) lab.Link { return link{d, a, b} }

type link struct {
	d    *Driver
	a, b string
}

// ends are both nodes, or a node and the API server, by the topology's names.
func (l link) ends() (*stand, cut, error) {
	s, err := l.d.standing()
	if err != nil {
		return nil, cut{}, err
	}
	c := cut{min(l.a, l.b), max(l.a, l.b)}
	for _, end := range []string{c.a, c.b} {
		if _, err := s.nodes.find(end); err != nil && end != lab.DaemonAPIServer {
			return nil, c, fmt.Errorf("link %s – %s: only links between nodes, and to %s, are within reach: %w", l.a, l.b, lab.DaemonAPIServer, err)
		}
	}
	if c.a == c.b {
		return nil, c, fmt.Errorf("link %s – %s: a node has no link to itself", l.a, l.b)
	}
	return s, c, nil
}

// toAPIServer reports whether one end is the API server.
func (c cut) toAPIServer() bool { return c.a == lab.DaemonAPIServer || c.b == lab.DaemonAPIServer }

// rules are what the ends that are nodes get, by node.
func (s *stand) rules(c cut) map[string]string {
	out := map[string]string{}
	for _, ends := range [][2]string{{c.a, c.b}, {c.b, c.a}} {
		switch {
		case ends[0] == lab.DaemonAPIServer:
		case c.toAPIServer():
			out[ends[0]] = apiRules(c, s.apiService)
		default:
			out[ends[0]] = cutRules(c, sources(s.nodes.at[ends[1]]))
		}
	}
	return out
}

// Cut implements lab.Link: each of the two nodes drops what comes from the other and its pods, but for what nodes tell the API
// server and kubelets. On a link to the API server its service has no answer for the node and its pods.
func (l link) Cut(ctx context.Context) error {
	s, c, err := l.ends()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.cuts[c] = true // before, so that what half succeeds is undone too
	s.mu.Unlock()
	for node, rules := range s.rules(c) {
		if _, err := s.run(ctx, s.nodes.cluster(node), "nft -f - <<'END'\n"+rules+"END"); err != nil {
			return fmt.Errorf("cut link %s – %s: %w", l.a, l.b, err)
		}
	}
	return nil
}

// Restore implements lab.Link.
func (l link) Restore(ctx context.Context) error {
	s, c, err := l.ends()
	if err != nil {
		return err
	}
	return s.restore(ctx, c)
}

func (s *stand) restore(ctx context.Context, c cut) error {
	s.mu.Lock()
	is := s.cuts[c]
	s.mu.Unlock()
	if !is {
		return nil
	}
	var errs []error
	for node := range s.rules(c) {
		_, err := s.run(ctx, s.nodes.cluster(node), fmt.Sprintf("nft delete table inet %s 2>/dev/null || ! nft list table inet %[1]s 2>/dev/null", cutTable(c)))
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("restore link %s – %s: %w", c.a, c.b, err)
	}
	s.mu.Lock()
	delete(s.cuts, c)
	s.mu.Unlock()
	return nil
}

// restoreAll undoes every Cut, and the API server's Stop.
func (s *stand) restoreAll(ctx context.Context) error {
	s.mu.Lock()
	var list []cut
	for c := range s.cuts {
		list = append(list, c)
	}
	s.mu.Unlock()
	errs := []error{s.returnAPIServer(ctx)}
	for _, c := range list {
		errs = append(errs, s.restore(ctx, c))
	}
	return errors.Join(errs...)
}

// cutTable is the nft table of a link, on each end that is a node.
func cutTable(c cut) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(c.a + " " + c.b))
	return fmt.Sprintf("ambientlab_cut_%08x", h.Sum32())
}

// ownPorts are those of the API server and of kubelet. Nodes reach each other's while a link is cut: it is the mesh's world that
// falls apart, not the lab's hold on it, and nodes stay Ready.
const ownPorts = "{ 6443, 10250 }"

// cutRules replace the table of a link by one that drops what comes from the sources, before anything else sees it.
func cutRules(c cut, from []netip.Prefix) string {
	var b strings.Builder
	table := cutTable(c)
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %[1]s\ntable inet %[1]s {\n  chain in {\n    type filter hook prerouting priority -450; policy accept;\n", table)
	for _, p := range from {
		if p.IsSingleIP() {
			fmt.Fprintf(&b, "    %s saddr %s tcp dport %s accept\n    %[1]s saddr %[2]s tcp sport %[3]s accept\n", family(p), p, ownPorts)
		}
		fmt.Fprintf(&b, "    %s saddr %s drop\n", family(p), p)
	}
	b.WriteString("  }\n}\n")
	return b.String()
}

// family is what nft calls a prefix' own.
func family(p netip.Prefix) string {
	if p.Addr().Is6() {
		return "ip6"
	}
	return "ip"
}

// apiRules replace the table of a link by one that drops what a node and its pods tell the API server by its service's addresses,
// before kube-proxy's rules see it, and what comes back on connections that were there, once it has that address again. Kubelet has
// another way to it.
func apiRules(c cut, service []netip.Addr) string {
	var b strings.Builder
	table := cutTable(c)
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %[1]s\ntable inet %[1]s {\n", table)
	for _, hook := range []struct{ name, priority, address, port string }{
		{"output", "-300", "daddr", "dport"}, {"prerouting", "-300", "daddr", "dport"}, {"input", "150", "saddr", "sport"}, {"postrouting", "150", "saddr", "sport"},
	} {
		fmt.Fprintf(&b, "  chain %s {\n    type filter hook %[1]s priority %s; policy accept;\n", hook.name, hook.priority)
		for _, ip := range service {
			fmt.Fprintf(&b, "    %s %s %s tcp %s 443 drop\n", family(netip.PrefixFrom(ip, 0)), hook.address, ip, hook.port)
		}
		b.WriteString("  }\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// sources are the addresses of a node and its pods.
func sources(n corev1.Node) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && (a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP) {
			out = append(out, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	for _, text := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

var errNoImpair = errors.New("links of a Kubernetes cluster can be cut, not impaired")

// Impair implements lab.Link.
func (l link) Impair(context.Context, lab.Impairment, lab.Impairment) error { return errNoImpair }

// Traffic implements lab.Link.
func (l link) Traffic(context.Context) (lab.LinkTraffic, error) {
	return lab.LinkTraffic{}, errNoImpair
}
