// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// routeVia sends one stranger's address to a neighbour.
func routeVia(stranger, gateway netip.Addr) error {
	return netlink.RouteAdd(&netlink.Route{Dst: host(stranger), Gw: gateway.AsSlice()})
}

// deliverLocally makes the namespace take packets to a stranger's address for itself.
func deliverLocally(stranger netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{
		Type: unix.RTN_LOCAL, Dst: host(stranger), LinkIndex: lo.Attrs().Index, Scope: netlink.SCOPE_HOST,
	})
}

// staticNeighbour makes the link send to an address that nobody has.
func staticNeighbour(link, addr string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	return netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, IP: net.ParseIP(addr), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}, State: netlink.NUD_PERMANENT,
	})
}
