// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// originalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST alike.
const originalDst = 80

// OriginalDestination is where the client of a redirected connection wanted to go, by the kernel's connection tracking. An
// IPv4 connection that came in through an IPv6 socket yields an IPv4 address. A connection that was not redirected yields
// the address it came to; one that is not tracked is an error.
func OriginalDestination(c *net.TCPConn) (netip.AddrPort, error) {
	local, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("read original destination: connection has no TCP address")
	}
	v4 := local.AddrPort().Addr().Unmap().Is4()
	rc, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", err)
	}
	var dst netip.AddrPort
	ctlErr := rc.Control(func(fd uintptr) {
		if v4 {
			dst, err = originalDstV4(int(fd))
		} else {
			dst, err = originalDstV6(int(fd))
		}
	})
	if ctlErr != nil {
		err = ctlErr
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination of %s: %w", c.RemoteAddr(), err)
	}
	return dst, nil
}

func originalDstV4(fd int) (netip.AddrPort, error) {
	// The call fills in 16 bytes of struct sockaddr_in; this wrapper is one that offers a buffer large enough.
	b, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, originalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	raw := b.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(raw[4:8])), binary.BigEndian.Uint16(raw[2:4])), nil
}

func originalDstV6(fd int) (netip.AddrPort, error) {
	b, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, originalDst) // begins with a struct sockaddr_in6
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], b.Addr.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(b.Addr.Addr), binary.BigEndian.Uint16(port[:])), nil
}
