// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Probes is what capture installs on a node, in the host's own namespace: connections that kubelet makes to enrolled pods get a
// source address that the pods' rules let pass, so that a probe reaches the application itself whatever the mesh demands of
// its callers. Only sockets of the host are meant, never what it forwards. It is a table of its own, before everybody
// else's source translation, and works where the host's other rules are nftables or iptables of either kind.
type Probes struct {
	// UID is kubelet's user.
	UID uint32
	// Pods are the addresses of enrolled pods, and the pod that has each.
	Pods map[netip.Addr]string
	// Source is what such connections come from. The pods' plans must have the same.
	Source ProbeSource
	// Unknown are enrolled pods whose addresses are not known now. What the host has for them stays.
	Unknown []string
}

// ProbeSource are the addresses that kubelet's probes get as their source; a family without one has the mesh's own,
// mesh.ProbeSourceV4 and mesh.ProbeSourceV6. They are link-local or otherwise nobody's: whoever has one passes every pod's capture.
type ProbeSource struct{ V4, V6 netip.Addr }

// Of is the address of a family.
func (s ProbeSource) Of(f Family) netip.Addr {
	switch {
	case f == IPv4 && s.V4.IsValid():
		return s.V4
	case f == IPv4:
		return mesh.ProbeSourceV4
	case s.V6.IsValid():
		return s.V6
	}
	return mesh.ProbeSourceV6
}

// Names are upstream's.
const (
	probeTable = tablePrefix + string(NAT)
	probeChain = chainPrefix + string(postrouting)

	postrouting hook = "postrouting"

	// priorityProbes is before that of everybody's masquerading, srcnat: the first translation of a connection is the only one.
	priorityProbes = 99
)

func probeSet(f Family) string {
	if f == IPv4 {
		return "istio-inpod-probes-v4"
	}
	return "istio-inpod-probes-v6"
}

func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// elements are a family's addresses in order.
func (p Probes) elements(f Family) []netip.Addr {
	var out []netip.Addr
	for _, a := range slices.SortedFunc(maps.Keys(p.Pods), netip.Addr.Compare) {
		if familyOf(a) == f {
			out = append(out, a)
		}
	}
	return out
}

// unmapped has no IPv4 addresses in IPv6 form: as such they would never be matched (istio/istio#51622).
func (p Probes) unmapped() Probes {
	pods := make(map[netip.Addr]string, len(p.Pods))
	for a, uid := range p.Pods {
		if a.IsValid() {
			pods[a.Unmap().WithZone("")] = uid
		}
	}
	p.Pods = pods
	return p
}

// Nftables is the host's table in the shape of `nft list ruleset`.
func (p Probes) Nftables() string {
	p = p.unmapped()
	var s strings.Builder
	fmt.Fprintf(&s, "table inet %s {\n", probeTable)
	for _, f := range []Family{IPv4, IPv6} {
		fmt.Fprintf(&s, "\tset %s {\n\t\ttype %s_addr\n", probeSet(f), f)
		var list []string
		for _, a := range p.elements(f) {
			list = append(list, fmt.Sprintf("%s comment %q", a, p.Pods[a]))
		}
		if len(list) > 0 {
			fmt.Fprintf(&s, "\t\telements = { %s }\n", strings.Join(list, ",\n\t\t\t     "))
		}
		s.WriteString("\t}\n\n")
	}
	fmt.Fprintf(&s, "\tchain %s {\n\t\ttype nat hook postrouting priority srcnat - 1; policy accept;\n\t\tjump %s\n\t}\n\n", postrouting, probeChain)
	fmt.Fprintf(&s, "\tchain %s {\n", probeChain)
	for _, f := range []Family{IPv4, IPv6} {
		fmt.Fprintf(&s, "\t\tmeta skuid %d meta l4proto tcp %s daddr @%s counter packets 0 bytes 0 snat %s to %s\n",
			p.UID, nftFamily(f), probeSet(f), nftFamily(f), p.Source.Of(f))
	}
	s.WriteString("\t}\n}\n")
	return s.String()
}
