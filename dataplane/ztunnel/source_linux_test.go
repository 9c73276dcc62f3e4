// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"net"
	"net/netip"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// TestSourcePortsAreNotClients: a connection to an application comes from the client's address, but from no port that the
// client's kernel would choose for one of its own, in the mesh or outside it.
func TestSourcePortsAreNotClients(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	ports := make(chan uint16, 64)
	serve(t, l.b, 8080, func(c *net.TCPConn) {
		ports <- remoteOf(c).Port()
		answer(c)
	})
	addrA.each(t, func(t *testing.T, pick func(family) netip.Addr) {
		for from, ns := range map[netip.Addr]*netns.NS{pick(addrA): l.a, pick(addrX): l.x} {
			for range 20 {
				carried(t, ns, netip.AddrPortFrom(pick(addrB), 8080), from)
				if port := <-ports; port < firstSourcePort {
					t.Errorf("the application saw %s port %d", from, port)
				}
			}
		}
	})
}
