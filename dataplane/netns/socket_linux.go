// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// backlog asks for the longest queue; the kernel cuts it to the namespace's net.core.somaxconn.
const backlog = 1 << 16

// SocketOptions are what a socket gets before it is bound. The zero value is a plain socket without keepalive.
type SocketOptions struct {
	// Mark is the packet mark (SO_MARK); 0 sets none.
	Mark uint32
	// Transparent allows an address that is not local, as source or to listen on, and accepts what is routed here for it.
	Transparent bool
	// Freebind allows binding to an address that does not exist (yet).
	Freebind bool
	// BindAddrNoPort leaves the choice of a source port to connect, so that one source address serves more connections
	// than there are ports.
	BindAddrNoPort bool
	// ReusePort lets several listeners share the address; see HandOver.
	ReusePort bool
	// Source is the address a dialled socket is bound to; invalid or unspecified leaves it to the kernel, port 0 too.
	Source netip.AddrPort
	// KeepAlive is set on dialled connections, and inherited by accepted ones.
	KeepAlive net.KeepAliveConfig
	// Timeout is how long a dialled connection may take to stand; 0 is as long as its context allows.
	Timeout time.Duration
	// UserTimeout is how long sent data may stay unacknowledged (TCP_USER_TIMEOUT); 0 leaves the kernel's.
	UserTimeout time.Duration
}

// ListenTCP listens on addr in the namespace. [::] takes IPv4 too, and is 0.0.0.0 where the kernel has no IPv6. The caller
// closes the listener. Its connections inherit the options from the kernel.
func (n *NS) ListenTCP(ctx context.Context, addr netip.AddrPort, o SocketOptions) (*net.TCPListener, error) {
	l, err := n.listenTCP(ctx, addr, o)
	if errors.Is(err, unix.EAFNOSUPPORT) && addr.Addr() == netip.IPv6Unspecified() {
		return n.listenTCP(ctx, netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port()), o)
	}
	return l, err
}

func (n *NS) listenTCP(ctx context.Context, addr netip.AddrPort, o SocketOptions) (*net.TCPListener, error) {
	addr = unmap(addr)
	if !addr.IsValid() {
		return nil, addressError("listen on", n, addr, errNoAddress)
	}
	network := "tcp6"
	if addr.Addr().Is4() {
		network = "tcp4"
	}
	if addr.Addr().Zone() != "" { // by its number, as package net knows the names of one namespace only
		sa, err := n.sockaddr(addr)
		if err != nil {
			return nil, addressError("listen on", n, addr, err)
		}
		zone := strconv.Itoa(int(sa.(*unix.SockaddrInet6).ZoneId))
		addr = netip.AddrPortFrom(addr.Addr().WithZone(zone), addr.Port())
	}
	// Without a keepalive of its own, so that package net sets none on each connection anew: they inherit the listener's.
	c := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, rc syscall.RawConn) error {
		return controlRaw(rc, func(fd int) error { return o.setListener(fd, addr) })
	}}
	c.SetMultipathTCP(false)
	var l *net.TCPListener
	err := n.Do(func() error {
		made, err := c.Listen(ctx, network, addr.String()) // on this thread, for a literal address
		if err == nil {
			l = made.(*net.TCPListener)
		}
		return err
	})
	if err != nil {
		return nil, addressError("listen on", n, addr, err)
	}
	rc, err := l.SyscallConn()
	if err == nil {
		err = controlRaw(rc, func(fd int) error {
			if err := unix.Listen(fd, backlog); err != nil {
				return os.NewSyscallError("listen", err)
			}
			if o.ReusePort {
				return detachSteering(fd)
			}
			return nil
		})
	}
	if err != nil {
		l.Close()
		return nil, addressError("listen on", n, addr, err)
	}
	return l, nil
}

// setListener sets what is to be set before bind, and what connections inherit.
func (o SocketOptions) setListener(fd int, addr netip.AddrPort) error {
	family := unix.AF_INET6
	if addr.Addr().Is4() {
		family = unix.AF_INET
	}
	if err := o.set(fd, family, unix.SOCK_STREAM, addr.Addr()); err != nil {
		return err
	}
	return o.setConn(fd)
}

// setLiveness has the kernel look whether the peer is there.
func (o SocketOptions) setLiveness(fd int) error {
	alive, k := o.KeepAlive.Enable, o.KeepAlive
	for _, s := range []option{
		{true, "SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, boolInt(alive)},
		{alive && k.Idle > 0, "TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, seconds(k.Idle)},
		{alive && k.Interval > 0, "TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, seconds(k.Interval)},
		{alive && k.Count > 0, "TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, k.Count},
		{o.UserTimeout > 0, "TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(o.UserTimeout.Milliseconds())},
	} {
		if err := s.apply(fd); err != nil {
			return err
		}
	}
	return nil
}

// seconds rounds up, as the least that the kernel knows is one.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// DialTCP connects from the namespace to addr, for as long as ctx allows. An error that ctx caused matches ctx's error.
func (n *NS) DialTCP(ctx context.Context, addr netip.AddrPort, o SocketOptions) (*net.TCPConn, error) {
	f, err := n.DialFile(ctx, addr, o)
	if err != nil {
		return nil, err
	}
	c, err := o.AsTCP(f)
	if err != nil {
		f.Close()
		return nil, addressError("connect to", n, addr, err)
	}
	return c, nil
}

// DialFile is DialTCP with half as many system calls, for who needs the socket alone.
func (n *NS) DialFile(ctx context.Context, addr netip.AddrPort, o SocketOptions) (*os.File, error) {
	addr = unmap(addr)
	fd, err := n.dialSocket(ctx, addr, o)
	if err != nil {
		return nil, err
	}
	sa, err := n.sockaddr(addr)
	if err != nil {
		unix.Close(fd)
		return nil, addressError("connect to", n, addr, err)
	}
	to := encode(sa)
	f, err := n.connect(ctx, fd, &to, o.Timeout)
	if err != nil {
		return nil, addressError("connect to", n, addr, err)
	}
	if err := control(f, o.setConn); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// setConn sets what package net and SocketOptions would have a connection have.
func (o SocketOptions) setConn(fd int) error {
	if err := (option{true, "TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}).apply(fd); err != nil {
		return err
	}
	return o.setLiveness(fd)
}

// Local is the address that a connection's socket is bound to.
func Local(f *os.File) netip.AddrPort {
	var raw unix.RawSockaddrInet6
	if control(f, func(fd int) error { return getsockname(fd, &raw) }) != nil {
		return netip.AddrPort{}
	}
	return decode(&raw)
}

// dialSocket makes the socket that DialTCP connects, bound to its source.
func (n *NS) dialSocket(ctx context.Context, addr netip.AddrPort, o SocketOptions) (fd int, err error) {
	src := unmap(o.Source)
	if !src.IsValid() || (src.Addr().IsUnspecified() && src.Port() == 0) {
		if fd, err = n.socket(ctx, unix.SOCK_STREAM, addr, o); err != nil {
			return -1, addressError("connect to", n, addr, err)
		}
		return fd, nil
	}
	if src.Addr().Is4() != addr.Addr().Is4() {
		return -1, fmt.Errorf("connect to %s in %s: source %s is of the other address family", addr, n, src.Addr())
	}
	if fd, err = n.bound(ctx, "bind source", unix.SOCK_STREAM, src, o); err != nil {
		return -1, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return fd, nil
}

// tune sets again what package net has set over.
func (o SocketOptions) tune(c *net.TCPConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return controlRaw(rc, o.setLiveness)
}

// bound makes a socket and binds it to addr; op names the caller's purpose in errors.
func (n *NS) bound(ctx context.Context, op string, kind int, addr netip.AddrPort, o SocketOptions) (fd int, err error) {
	addr = unmap(addr)
	if fd, err = n.socket(ctx, kind, addr, o); err != nil {
		return -1, addressError(op, n, addr, err)
	}
	sa, err := n.sockaddr(addr)
	if err == nil {
		from := encode(sa)
		err = from.bind(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, addressError(op, n, addr, err)
	}
	return fd, nil
}

// addressError says what was tried, where and on which address; a taken port is named.
func addressError(op string, n *NS, addr netip.AddrPort, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%s %s in %s: port %d is taken: %w", op, addr, n, addr.Port(), err)
	}
	return fmt.Errorf("%s %s in %s: %w", op, addr, n, err)
}

func unmap(a netip.AddrPort) netip.AddrPort {
	if !a.IsValid() {
		return a
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
