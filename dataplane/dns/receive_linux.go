// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// datagramBytes is more than any datagram has.
const datagramBytes = 1 << 16

var buffers = sync.Pool{New: func() any {
	b := make([]byte, datagramBytes)
	return &b
}}

func take() *[]byte { return buffers.Get().(*[]byte) }

func give(b *[]byte) { buffers.Put(b) }

// receiver reads datagrams into buffers that it takes when there is one to read: a node has many sockets that hear nothing.
// It is used by one goroutine.
type receiver struct {
	raw syscall.RawConn

	// of the read under way
	buf  *[]byte
	n    int
	from unix.Sockaddr
	err  error
}

func newReceiver(c *net.UDPConn) (*receiver, error) {
	raw, err := c.SyscallConn()
	return &receiver{raw: raw}, err
}

// receive waits for a datagram. The caller gives the buffer back.
func (r *receiver) receive() (b *[]byte, n int, from netip.AddrPort, err error) {
	if err := r.raw.Read(r.read); err != nil {
		return nil, 0, netip.AddrPort{}, err
	}
	if r.err != nil {
		return nil, 0, netip.AddrPort{}, os.NewSyscallError("recvfrom", r.err)
	}
	return r.buf, r.n, addrPort(r.from), nil
}

func (r *receiver) read(fd uintptr) bool {
	r.buf = take()
	for {
		r.n, r.from, r.err = unix.Recvfrom(int(fd), *r.buf, unix.MSG_DONTWAIT)
		if !errors.Is(r.err, unix.EINTR) {
			break
		}
	}
	if r.err != nil {
		give(r.buf)
	}
	return !errors.Is(r.err, unix.EAGAIN)
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		a := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			a = a.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(a, uint16(sa.Port))
	}
	return netip.AddrPort{}
}
