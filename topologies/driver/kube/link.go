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

// Link implements lab.Driver. Links between nodes can be cut, and no link can be impaired.
func (d *Driver) Link(a, b string) lab.Link { return link{d, a, b} }

type link struct {
	d    *Driver
	a, b string
}

// ends are both nodes, by the topology's names.
func (l link) ends() (*stand, cut, error) {
	s, err := l.d.standing()
	if err != nil {
		return nil, cut{}, err
	}
	c := cut{min(l.a, l.b), max(l.a, l.b)}
	for _, end := range []string{c.a, c.b} {
		if _, err := s.nodes.find(end); err != nil {
			return nil, c, fmt.Errorf("link %s – %s: only links between nodes are within reach: %w", l.a, l.b, err)
		}
	}
	if c.a == c.b {
		return nil, c, fmt.Errorf("link %s – %s: a node has no link to itself", l.a, l.b)
	}
	return s, c, nil
}

// Cut implements lab.Link: each of the two nodes drops what comes from the other and its pods, but for what nodes tell the API
// server and kubelets.
func (l link) Cut(ctx context.Context) error {
	s, c, err := l.ends()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.cuts[c] = true // before, so that what half succeeds is undone too
	s.mu.Unlock()
	for _, end := range [][2]string{{c.a, c.b}, {c.b, c.a}} {
		rules := cutRules(c, sources(s.nodes.at[end[1]]))
		if _, err := s.run(ctx, s.nodes.cluster(end[0]), "nft -f - <<'END'\n"+rules+"END"); err != nil {
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
	for _, end := range []string{c.a, c.b} {
		_, err := s.run(ctx, s.nodes.cluster(end), fmt.Sprintf("nft delete table inet %s 2>/dev/null || ! nft list table inet %[1]s 2>/dev/null", cutTable(c)))
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

// cutTable is the nft table of a link, on both of its nodes.
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
		family := "ip"
		if p.Addr().Is6() {
			family = "ip6"
		}
		if p.IsSingleIP() {
			fmt.Fprintf(&b, "    %s saddr %s tcp dport %s accept\n    %[1]s saddr %[2]s tcp sport %[3]s accept\n", family, p, ownPorts)
		}
		fmt.Fprintf(&b, "    %s saddr %s drop\n", family, p)
	}
	b.WriteString("  }\n}\n")
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
