// SPDX-License-Identifier: Apache-2.0

package nodenet_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

// A sender learns from the router what a narrow path takes; on a path that is not narrow nothing is told.
func TestPathMTU(t *testing.T) {
	c := newCluster(t)
	const narrow = 1300
	for i := range c.config {
		c.config[i].Peers = slices.Clone(c.config[i].Peers)
		c.config[i].Peers[0].PathMTU = narrow
	}
	c.apply()
	for _, six := range []bool{false, true} {
		if got := pathMTU(t, c, podAddr(1, 0, six), narrow); got != narrow {
			t.Errorf("to %s the path takes %d, want %d", podAddr(1, 0, six), got, narrow)
		}
		if got := pathMTU(t, c, podAddr(0, 1, six), 1500); got != 1500 {
			t.Errorf("control: on the node itself the path takes %d", got)
		}
	}
	for i := range c.config {
		c.config[i].Peers[0].PathMTU = 0
	}
	c.apply()
	if diffs, err := nodenet.Diff(t.Context(), c.nodes[0], plan(t, c.config[0])); err != nil || len(diffs) > 0 {
		t.Errorf("after the path is wide again: %v, %v", diffs, err)
	}
}

// pathMTU sends large datagrams from a pod until the kernel believes in want, or for a second.
func pathMTU(t *testing.T, c *cluster, to netip.Addr, want int) (mtu int) {
	t.Helper()
	nstest.In(t, c.pod(0, 0), func() error {
		family, level, option, discover, sa := unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU, unix.IPV6_MTU_DISCOVER, unix.Sockaddr(&unix.SockaddrInet6{Port: 9, Addr: to.As16()})
		if to.Is4() {
			family, level, option, discover, sa = unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU, unix.IP_MTU_DISCOVER, &unix.SockaddrInet4{Port: 9, Addr: to.As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, level, discover, unix.IP_PMTUDISC_DO); err != nil {
			return err
		}
		if err := unix.Connect(fd, sa); err != nil {
			return err
		}
		for end := time.Now().Add(time.Second); time.Now().Before(end) && (mtu == 0 || mtu != want); {
			_, _ = unix.Write(fd, make([]byte, 1400)) // refused once the path is known to be narrow
			if mtu, err = unix.GetsockoptInt(fd, level, option); err != nil {
				return err
			}
		}
		return nil
	})
	return mtu
}
