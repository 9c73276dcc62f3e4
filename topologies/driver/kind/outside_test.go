// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/topologies"
)

func TestHostsAreApartFromNodes(t *testing.T) {
	subnets := []netip.Prefix{netip.MustParsePrefix("172.20.0.0/16"), netip.MustParsePrefix("fc00:1::/64")}
	host := func(name string, addrs ...string) (h topologies.External) {
		h.Name = name
		for _, a := range addrs {
			h.Addresses = append(h.Addresses, netip.MustParseAddr(a))
		}
		return h
	}
	if err := within([]topologies.External{host("far", "198.51.100.2", "fc00:2::2")}, subnets); err != nil {
		t.Error(err)
	}
	err := within([]topologies.External{host("a", "172.20.0.2"), host("b", "198.51.100.2", "fc00:1::2")}, subnets)
	for _, want := range []string{"external host a: its address 172.20.0.2", "external host b: its address fc00:1::2"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
