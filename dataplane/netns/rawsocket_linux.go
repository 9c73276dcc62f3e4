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

var errNoAddress = errors.New("not an address")

// socket makes a non-blocking socket for addr's family in the namespace; the file is in the poller.
func (n *NS) socket(ctx context.Context, kind int, addr netip.AddrPort, o SocketOptions) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !addr.IsValid() {
		return nil, errNoAddress
	}
	family, fd := unix.AF_INET6, -1
	if addr.Addr().Is4() {
		family = unix.AF_INET
	}
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return os.NewSyscallError("socket", err)
	})
	if err == nil {
		err = o.set(fd, family, kind, addr.Addr())
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), "socket in "+n.String()), nil
}

// option is one integer socket option.
type option struct {
	on               bool
	name             string
	level, id, value int
}

func (o SocketOptions) set(fd, family, kind int, addr netip.Addr) error {
	v4, v6 := family == unix.AF_INET, family == unix.AF_INET6
	dual := v6 && addr.IsUnspecified()
	stream := kind == unix.SOCK_STREAM
	for _, s := range []option{
		{v6, "IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, boolInt(!dual)},
		{stream, "SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{o.ReusePort, "SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		{o.Mark != 0, "SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark)},
		{o.Transparent && (v4 || dual), "IP_TRANSPARENT", unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1},
		{o.Transparent && v6, "IPV6_TRANSPARENT", unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1},
		{o.Freebind && v4, "IP_FREEBIND", unix.IPPROTO_IP, unix.IP_FREEBIND, 1},
		{o.Freebind && v6, "IPV6_FREEBIND", unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1},
		{o.BindAddrNoPort, "IP_BIND_ADDRESS_NO_PORT", unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1},
	} {
		if err := s.apply(fd); err != nil {
			return err
		}
	}
	return nil
}

func (s option) apply(fd int) error {
	if !s.on {
		return nil
	}
	if err := unix.SetsockoptInt(fd, s.level, s.id, s.value); err != nil {
		return fmt.Errorf("setsockopt %s: %w", s.name, err)
	}
	return nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// connect waits in the poller until the connection stands, is refused, or ctx ends.
func (n *NS) connect(ctx context.Context, f *os.File, addr netip.AddrPort) error {
	sa, err := n.sockaddr(addr)
	if err != nil {
		return addressError("connect to", n, addr, err)
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return addressError("connect to", n, addr, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	started := false
	var result error
	err = rc.Write(func(fd uintptr) bool {
		if !started {
			started = true
			result = unix.Connect(int(fd), sa)
			// Interrupted means the same as in progress: the kernel goes on connecting.
			if !errors.Is(result, unix.EINPROGRESS) && !errors.Is(result, unix.EINTR) {
				return true
			}
			// On the same host, as to an application in its pod, it has finished already.
		}
		var done bool
		done, result = connected(int(fd))
		return done
	})
	if !stop() { // a connection that stands all the same has the deadline
		return addressError("connect to", n, addr, ctx.Err())
	}
	if err == nil {
		err = os.NewSyscallError("connect", result)
	}
	if err != nil {
		return addressError("connect to", n, addr, err)
	}
	return nil
}

// connected tells a finished connect from a wake-up that came for another reason.
func connected(fd int) (done bool, err error) {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, err
	}
	if code != 0 {
		return true, unix.Errno(code)
	}
	_, err = unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) {
		return false, nil
	}
	return true, err
}

// sockaddr translates addr; a zone that is a name is looked up in the namespace.
func (n *NS) sockaddr(addr netip.AddrPort) (unix.Sockaddr, error) {
	a := addr.Addr()
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: a.As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: a.As16()}
	if a.Zone() == "" {
		return sa, nil
	}
	if id, err := strconv.ParseUint(a.Zone(), 10, 32); err == nil {
		sa.ZoneId = uint32(id)
		return sa, nil
	}
	err := n.Do(func() error {
		ifc, err := net.InterfaceByName(a.Zone())
		if err != nil {
			return fmt.Errorf("find interface %q: %w", a.Zone(), err)
		}
		sa.ZoneId = uint32(ifc.Index)
		return nil
	})
	return sa, err
}

// control runs use on f's descriptor while it cannot be closed.
func control(f *os.File, use func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return controlRaw(rc, use)
}

func controlRaw(rc syscall.RawConn, use func(fd int) error) error {
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = use(int(fd)) }); err != nil {
		return err
	}
	return inner
}
