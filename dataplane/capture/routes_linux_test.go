// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"net"

	"github.com/vishvananda/netlink"
)

// defaultVia sets default routes over link.
func defaultVia(link string, gateways ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, gw := range gateways {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
			return err
		}
	}
	return nil
}
