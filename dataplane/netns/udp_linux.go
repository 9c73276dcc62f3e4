// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// ListenUDP binds a UDP socket to addr in the namespace; [::] as in ListenTCP. The caller closes it.
func (n *NS) ListenUDP(ctx context.Context, addr netip.AddrPort, o SocketOptions) (*net.UDPConn, error) {
	fd, err := n.bound(ctx, "bind UDP", unix.SOCK_DGRAM, addr, o)
	if errors.Is(err, unix.EAFNOSUPPORT) && addr.Addr() == netip.IPv6Unspecified() {
		return n.ListenUDP(ctx, netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port()), o)
	}
	if err != nil {
		return nil, err
	}
	f := n.newFile(fd)
	defer f.Close() // net.FilePacketConn works on a duplicate
	if o.ReusePort {
		if err := control(f, detachSteering); err != nil {
			return nil, addressError("bind UDP", n, addr, err)
		}
	}
	return n.packetConn(f, "bind UDP", addr)
}

// DialUDP makes a UDP socket in the namespace that exchanges datagrams with addr alone. The caller closes it. Of o only
// Mark counts: the kernel chooses the source.
func (n *NS) DialUDP(ctx context.Context, addr netip.AddrPort, o SocketOptions) (*net.UDPConn, error) {
	addr = unmap(addr)
	fd, err := n.socket(ctx, unix.SOCK_DGRAM, addr, SocketOptions{Mark: o.Mark})
	if err != nil {
		return nil, addressError("connect to", n, addr, err)
	}
	f := n.newFile(fd)
	defer f.Close() // net.FilePacketConn works on a duplicate
	sa, err := n.sockaddr(addr)
	if err == nil {
		err = control(f, func(fd int) error { return os.NewSyscallError("connect", unix.Connect(fd, sa)) })
	}
	if err != nil {
		return nil, addressError("connect to", n, addr, err)
	}
	return n.packetConn(f, "connect to", addr)
}

func (n *NS) packetConn(f *os.File, op string, addr netip.AddrPort) (*net.UDPConn, error) {
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, addressError(op, n, addr, err)
	}
	return c.(*net.UDPConn), nil
}

// newcomer is the place in a SO_REUSEPORT group of the second of two members.
const newcomer = 1

// StepAside sends the datagrams of c's SO_REUSEPORT group to its second member from now on: whoever steps aside was there
// first, and took the first place when the one before it left. Without a second member all still comes to c. What is queued
// at c by then is still c's to read. A member that joins undoes it (ListenUDP).
func StepAside(c *net.UDPConn) error {
	rc, err := c.SyscallConn()
	if err == nil {
		err = controlRaw(rc, func(fd int) error { return attachSteering(fd, newcomer) })
	}
	if err != nil {
		return fmt.Errorf("step aside at %s: %w", c.LocalAddr(), err)
	}
	return nil
}
