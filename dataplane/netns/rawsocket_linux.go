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

// socket makes a non-blocking socket for addr's family in the namespace.
func (n *NS) socket(ctx context.Context, kind int, addr netip.AddrPort, o SocketOptions) (fd int, err error) {
	if err := ctx.Err(); err != nil {
		return -1, err
	}
	if !addr.IsValid() {
		return -1, errNoAddress
	}
	fd = -1
	family := unix.AF_INET6
	if addr.Addr().Is4() {
		family = unix.AF_INET
	}
	err = n.Do(func() (err error) {
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
		return -1, err
	}
	return fd, nil
}

// newFile gives a socket to the poller, and to its caller a file that owns it.
func (n *NS) newFile(fd int) *os.File { return os.NewFile(uintptr(fd), n.file) }

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
	freebind := o.Freebind && !o.Transparent // which allows the same
	for _, s := range []option{
		{v6, "IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, boolInt(!dual)},
		{stream, "SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{o.ReusePort, "SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		{o.Mark != 0, "SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark)},
		{o.Transparent && (v4 || dual), "IP_TRANSPARENT", unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1},
		{o.Transparent && v6, "IPV6_TRANSPARENT", unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1},
		{freebind && v4, "IP_FREEBIND", unix.IPPROTO_IP, unix.IP_FREEBIND, 1},
		{freebind && v6, "IPV6_FREEBIND", unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1},
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
	if err := setsockoptInt(fd, s.level, s.id, s.value); err != nil {
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

// connect connects the socket, for as long as ctx and limit allow, and returns it in the poller. An application in its pod is connected to at
// once, and the poller hears of no socket that is not connected yet.
func (n *NS) connect(ctx context.Context, fd int, to *sockaddr, limit time.Duration) (*os.File, error) {
	err := to.connect(fd)
	if pending(err) {
		err = to.connect(fd) // on the same host it has finished already
	}
	f := n.newFile(fd)
	if pending(err) {
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		err = awaitConnect(ctx, f, to)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// pending tells a connect that goes on. One that was interrupted does.
func pending(err error) bool {
	return errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.EALREADY) || errors.Is(err, unix.EINTR)
}

// awaitConnect waits in the poller until the connection stands, is refused, or ctx ends.
func awaitConnect(ctx context.Context, f *os.File, to *sockaddr) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	var result error
	err = rc.Write(func(fd uintptr) bool {
		result = to.connect(int(fd))
		return !pending(result)
	})
	if !stop() { // a connection that stands all the same has the deadline
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return result
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
