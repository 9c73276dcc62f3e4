// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

const maxClusters = 8

// finding is a problem that depends on other parts of the document: if one of those could not be decoded, the finding
// is an echo of that, and is dropped.
type finding struct {
	Problem
	deps []string
}

// validator collects findings.
type validator struct {
	found []finding
}

func (v *validator) add(path, format string, args ...any) {
	v.found = append(v.found, finding{Problem: Problem{Path: path, Message: fmt.Sprintf(format, args...)}})
}

// addDep is add for a finding that depends on what stands at dep.
func (v *validator) addDep(path, dep, format string, args ...any) {
	v.add(path, format, args...)
	v.found[len(v.found)-1].deps = []string{dep}
}

// Validate checks a topology that was not read from a file: defaults are filled in first. Problems have no lines.
func (s *Spec) Validate() error {
	s.setDefaults()
	var ps Problems
	for _, f := range s.validate() {
		ps = append(ps, f.Problem)
	}
	return ps.err()
}

func (s *Spec) validate() []finding {
	v := &validator{}
	v.label("name", s.Name)
	switch n := len(s.Clusters); {
	case n == 0:
		v.add("clusters", "missing; want at least one cluster")
	case n > maxClusters:
		v.add("clusters", "%d clusters, want at most %d", n, maxClusters)
	}
	clusters, hosts, subnets := names{}, names{}, subnetUse{}
	for i := range s.Clusters {
		c, at := &s.Clusters[i], fmt.Sprintf("clusters[%d]", i)
		v.unique(clusters, at+".name", c.Name)
		v.cluster(c, at, hosts, subnets)
	}
	v.external(s.External, hosts, subnets)
	v.links(s.Links, hosts)
	return v.found
}

func (v *validator) cluster(c *Cluster, at string, hosts names, subnets subnetUse) {
	switch c.IPFamily {
	case IPv4, IPv6, Dual:
		v.subnets(c, at, subnets)
	default:
		v.add(at+".ipFamily", "is %q, want ipv4, ipv6 or dual", c.IPFamily)
	}
	switch c.KubeProxyMode {
	case "", KubeProxyIPTables, KubeProxyNFTables, KubeProxyIPVS:
	default:
		v.add(at+".kubeProxyMode", "is %q, want iptables, nftables or ipvs", c.KubeProxyMode)
	}
	for _, domain := range []struct{ path, name string }{{at + ".domain", c.Domain}, {at + ".trustDomain", c.TrustDomain}} {
		if msgs := validation.IsDNS1123Subdomain(domain.name); len(msgs) > 0 {
			v.add(domain.path, "%q is not a domain name", domain.name)
		}
	}
	if len(c.Nodes) == 0 {
		v.add(at+".nodes", "missing; want at least one node")
	}
	for i, n := range c.Nodes {
		p := fmt.Sprintf("%s.nodes[%d]", at, i)
		v.label(p+".name", n.Name)
		v.unique(hosts, p+".name", n.Name)
		v.labels(p+".labels", n.Labels)
		v.network(p+".network", n.Network)
		v.mtu(p+".mtu", n.MTU)
	}
	v.network(at+".network", c.Network)
	namespaces := names{}
	for i, n := range c.Namespaces {
		p := fmt.Sprintf("%s.namespaces[%d]", at, i)
		v.label(p+".name", n.Name)
		v.unique(namespaces, p+".name", n.Name)
		v.labels(p+".labels", n.Labels)
	}
	for _, n := range baseNamespaces {
		if _, ok := namespaces[n]; !ok {
			namespaces[n] = "every cluster's"
		}
	}
	v.workloads(c, at, namespaces)
	v.services(c, at, namespaces)
	v.objects(c, at, namespaces)
}

// subnetUse knows who owns which range, over all clusters.
type subnetUse map[netip.Prefix]string

func (v *validator) subnets(c *Cluster, at string, used subnetUse) {
	for _, x := range []struct {
		field      string
		subnets    []netip.Prefix
		min4, min6 int // the longest prefix that still has room
		room       string
	}{
		{"podSubnets", c.PodSubnets, 24, 64, "a /24 or /64 for each node"},
		{"serviceSubnets", c.ServiceSubnets, 24, 120, "the services"},
	} {
		path := at + "." + x.field
		want := map[IPFamily][]bool{IPv4: {false}, IPv6: {true}, Dual: {false, true}}[c.IPFamily]
		got := make([]bool, 0, 2)
		for i, p := range x.subnets {
			if !p.IsValid() {
				return // was reported when it was decoded
			}
			got = append(got, p.Addr().Is6())
			v.subnet(fmt.Sprintf("%s[%d]", path, i), p, x.min4, x.min6, x.room, used)
		}
		if !slices.Equal(want, got) {
			v.addDep(path, at+".ipFamily", "want %s for family %s", familyList(want), c.IPFamily)
			continue
		}
		if x.field == "podSubnets" {
			v.nodeRoom(c, path)
		}
	}
}

func (v *validator) subnet(path string, p netip.Prefix, min4, min6 int, room string, used subnetUse) {
	longest := min4
	if p.Addr().Is6() {
		longest = min6
	}
	if p.Bits() > longest {
		v.add(path, "%s is too small; want at most /%d, for %s", p, longest, room)
	}
	for _, other := range slices.SortedFunc(maps.Keys(used), netip.Prefix.Compare) {
		if p.Overlaps(other) {
			v.add(path, "%s overlaps %s, which is %s", p, other, used[other])
		}
	}
	used[p] = path
}

func (v *validator) nodeRoom(c *Cluster, path string) {
	for i, p := range c.PodSubnets {
		per := 24
		if p.Addr().Is6() {
			per = 64
		}
		if bits := per - p.Bits(); bits >= 0 && bits < 16 && len(c.Nodes) > 1<<bits {
			v.add(fmt.Sprintf("%s[%d]", path, i), "%s has room for %d nodes, there are %d", p, 1<<bits, len(c.Nodes))
		}
	}
}

func (v *validator) external(ext []External, hosts names, subnets subnetUse) {
	addrs := map[netip.Addr]string{}
	for i, e := range ext {
		p := fmt.Sprintf("external[%d]", i)
		v.label(p+".name", e.Name)
		v.unique(hosts, p+".name", e.Name)
		if len(e.Addresses) == 0 {
			v.add(p+".addresses", "missing; want at least one")
		}
		for j, a := range e.Addresses {
			v.externalAddr(fmt.Sprintf("%s.addresses[%d]", p, j), a, addrs, subnets)
		}
		v.serve(p+".serve", e.Serve)
		v.mtu(p+".mtu", e.MTU)
	}
}

// links name pairs of machines, each pair once.
func (v *validator) links(links []Link, hosts names) {
	pairs := names{}
	for i, l := range links {
		p := fmt.Sprintf("links[%d]", i)
		for j, name := range l.Between {
			if _, ok := hosts[name]; !ok {
				v.add(fmt.Sprintf("%s.between[%d]", p, j), "no node or external host %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(hosts)), ", "))
			}
		}
		v.mtu(p+".mtu", l.MTU)
		if len(l.Between) != 2 || l.Between[0] == l.Between[1] {
			v.add(p+".between", "want two different machines")
			continue
		}
		v.unique(pairs, p+".between", strings.Join(slices.Sorted(slices.Values(l.Between)), " and "))
	}
}

func (v *validator) mtu(path string, mtu int) {
	switch {
	case mtu == 0:
		v.add(path, "missing")
	case mtu < leastMTU || mtu > mostMTU:
		v.add(path, "%d is not from %d to %d", mtu, leastMTU, mostMTU)
	}
}

// network names end up as labels of nodes.
func (v *validator) network(path, name string) {
	if msgs := validation.IsValidLabelValue(name); len(msgs) > 0 {
		v.add(path, "%q is not a network's name: %s", name, msgs[0])
	}
}

func (v *validator) externalAddr(path string, a netip.Addr, seen map[netip.Addr]string, subnets subnetUse) {
	if !a.IsValid() {
		return // was reported when it was decoded
	}
	if a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() {
		v.add(path, "%s is not a host's address", a)
	}
	if other, ok := seen[a]; ok {
		v.add(path, "%s is also %s", a, other)
	}
	seen[a] = path
	for _, s := range slices.SortedFunc(maps.Keys(subnets), netip.Prefix.Compare) {
		if s.Contains(a) {
			v.add(path, "%s is within %s (%s)", a, subnets[s], s)
		}
	}
}

// names maps a name to the path that took it.
type names map[string]string

func (v *validator) unique(taken names, path, name string) {
	if name == "" {
		return // was reported as missing
	}
	if other, ok := taken[name]; ok {
		v.add(path, "%q is taken by %s", name, other)
		return
	}
	taken[name] = path
}

func (v *validator) label(path, name string) {
	switch {
	case name == "":
		v.add(path, "missing")
	case len(validation.IsDNS1123Label(name)) > 0:
		v.add(path, "%q is not a DNS label (lower case letters, digits and '-', at most 63)", name)
	}
}

func (v *validator) labels(path string, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if msgs := validation.IsQualifiedName(k); len(msgs) > 0 {
			v.add(path+"."+k, "%q is not a label's key: %s", k, msgs[0])
		}
		if msgs := validation.IsValidLabelValue(labels[k]); len(msgs) > 0 {
			v.add(path+"."+k, "%q is not a label's value: %s", labels[k], msgs[0])
		}
	}
}

func familyList(is6 []bool) string {
	var l []string
	for _, six := range is6 {
		if six {
			l = append(l, "one IPv6 subnet")
		} else {
			l = append(l, "one IPv4 subnet")
		}
	}
	return strings.Join(l, " then ")
}
