// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

// What comes after one of two sockets has stepped aside reaches the other; what was queued before stays its to read.
func TestStepAside(t *testing.T) {
	ns := nstest.New(t)
	for _, at := range []string{"127.0.0.1:15053", "[::1]:15053"} {
		addr := netip.MustParseAddrPort(at)
		listen := func() *net.UDPConn {
			c, err := ns.ListenUDP(t.Context(), addr, netns.SocketOptions{ReusePort: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		old := listen()
		if err := netns.StepAside(old); err != nil {
			t.Fatal(err)
		}
		sendMany(t, ns, addr, 20)
		if got := count(t, old); got != 20 {
			t.Errorf("%s: without a second socket %d of 20 datagrams arrived", at, got)
		}
		for round := range 3 { // each time the newcomer becomes the one that steps aside
			next := listen()
			sendMany(t, ns, addr, 40)
			before := count(t, old)
			if before == 0 || before == 40 {
				t.Errorf("%s, round %d: control: of two sockets one got %d of 40", at, round, before)
			}
			count(t, next)
			if err := netns.StepAside(old); err != nil {
				t.Fatal(err)
			}
			sendMany(t, ns, addr, 40)
			if got := count(t, next); got != 40 {
				t.Errorf("%s, round %d: the successor got %d of 40", at, round, got)
			}
			old.Close()
			old = next
		}
		old.Close()
	}
}

// sendMany sends datagrams from as many ports, by which the kernel spreads them.
func sendMany(t *testing.T, ns *netns.NS, to netip.AddrPort, n int) {
	t.Helper()
	for range n {
		c, err := ns.DialUDP(t.Context(), to, netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("query")); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// count reads what is queued.
func count(t *testing.T, c *net.UDPConn) int {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		if _, err := c.Read(make([]byte, 16)); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			return n
		}
	}
}
