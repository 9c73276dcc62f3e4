// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// escape is how a caller tries to get past the proxy of its own pod: with the marks by which rules know the proxy's
// packets, or from an address that rules let pass. What the kernel does not permit fails the call, with ClassPermission.
type escape struct {
	mark   uint32
	source netip.Addr
}

func (e escape) dialer(network string) *net.Dialer {
	d := &net.Dialer{}
	if e.mark != 0 || e.source.IsValid() {
		d.Control = e.control
	}
	if !e.source.IsValid() {
		return d
	}
	d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(e.source, 0))
	if strings.HasPrefix(network, "udp") {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(e.source, 0))
	}
	return d
}

func (e escape) control(_, _ string, c syscall.RawConn) error {
	var err error
	if ctlErr := c.Control(func(fd uintptr) { err = e.set(int(fd)) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

func (e escape) set(fd int) error {
	if e.mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(e.mark)); err != nil {
			return fmt.Errorf("set SO_MARK %#x: %w", e.mark, err)
		}
	}
	if !e.source.IsValid() || slices.Contains(HostAddrs(), e.source.String()) {
		return nil
	}
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if e.source.Is6() {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return fmt.Errorf("set IP_TRANSPARENT: %w", err)
	}
	return nil
}
