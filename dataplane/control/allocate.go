// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	istiov1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// labelAllocate with "false" keeps a ServiceEntry from getting addresses by itself.
const labelAllocate = "networking.istio.io/enable-autoallocate-ip"

// Where addresses are allocated from: upstream's ranges, of which nothing is ever routed. Of the second, 64 bits are used.
var (
	automaticV4 = netip.MustParsePrefix("240.240.0.0/16")
	automaticV6 = netip.MustParsePrefix("2001:2::/48")
)

// entryHost is one host of one ServiceEntry.
type entryHost struct{ entry, host string }

// allocates reports whether an entry's hosts get addresses: it has none of its own, and there is something that one could
// lead to.
func allocates(e *istiov1.ServiceEntry) bool {
	return len(e.Spec.Addresses) == 0 && e.Spec.Resolution != networking.ServiceEntry_NONE
}

// allocate gives every host that asks for it an address of each family. Which one is a function of names alone, so that
// every control plane, today's and tomorrow's, gives the same; where two names fall on one address, the older entry has it.
// What an allocator has written into a status stands before all that, and a wildcard gets none: no endpoint could be
// resolved for it. A host that is defined by several entries has an address for each.
func (c *compiler) allocate() {
	c.automatic = map[entryHost][]mesh.NetworkAddress{}
	taken := map[netip.Addr]bool{}
	var all []*istiov1.ServiceEntry
	for _, e := range sorted(c.objects.ServiceEntries) {
		for _, a := range e.Status.GetAddresses() {
			if addr, ok := c.address(a.GetValue()); ok {
				taken[addr.Addr] = true
			}
		}
		if allocates(e) && !c.NoAutoAllocate && !strings.EqualFold(e.Labels[labelAllocate], "false") {
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, func(a, b *istiov1.ServiceEntry) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	for _, e := range all {
		for _, host := range slices.Sorted(slices.Values(e.Spec.Hosts)) {
			key := entryHost{e.Namespace + "/" + e.Name, strings.ToLower(host)}
			if strings.HasPrefix(host, "*") || c.automatic[key] != nil || len(c.recorded(e, host)) > 0 {
				continue
			}
			for _, from := range []netip.Prefix{automaticV4, automaticV6} {
				if a, ok := free(from, key, taken); ok {
					taken[a] = true
					c.automatic[key] = append(c.automatic[key], mesh.NetworkAddress{Network: c.Network, Addr: a})
				}
			}
			if len(c.automatic[key]) == 0 {
				c.problem("ServiceEntry", e, "spec.hosts", "no address of %s is left for %s", automaticV4, host)
			}
		}
	}
}

// free is the first address that is not taken, from the one that key's hash says.
func free(from netip.Prefix, key entryHost, taken map[netip.Addr]bool) (netip.Addr, bool) {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key.entry + "/" + key.host)) // never fails
	n := h.Sum64()
	most := uint64(1) << min(63, from.Addr().BitLen()-from.Bits())
	for range cmp.Or(min(most, 1<<16), 1) {
		n %= most
		if a := nth(from, n); n != 0 && n != most-1 && !taken[a] { // neither the network's own address nor the broadcast one
			return a, true
		}
		n++
	}
	return netip.Addr{}, false
}

// nth is a prefix's address number n.
func nth(from netip.Prefix, n uint64) netip.Addr {
	if from.Addr().Is4() {
		b := from.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|uint32(n))
		return netip.AddrFrom4(b)
	}
	b := from.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], n)
	return netip.AddrFrom16(b)
}

// allocated are host's addresses.
func (c *compiler) allocated(e *istiov1.ServiceEntry, host string) []mesh.NetworkAddress {
	if vips := c.recorded(e, host); len(vips) > 0 {
		return vips
	}
	return c.automatic[entryHost{e.Namespace + "/" + e.Name, host}]
}

// recorded are the addresses that an allocator has written into the status for host.
func (c *compiler) recorded(e *istiov1.ServiceEntry, host string) (vips []mesh.NetworkAddress) {
	for _, a := range e.Status.GetAddresses() {
		if v, ok := c.address(a.GetValue()); ok && (a.GetHost() == "" || strings.EqualFold(a.GetHost(), host)) {
			vips = append(vips, v)
		}
	}
	return vips
}
