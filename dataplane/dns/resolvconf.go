// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"os"

	"github.com/miekg/dns"
)

// Resolvers are the name servers that a resolv.conf names; none if it cannot be read.
func Resolvers(path string) []netip.AddrPort {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	c, err := dns.ClientConfigFromReader(f)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, s := range c.Servers {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	return out
}
