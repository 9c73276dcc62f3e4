// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"io"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// writer writes to a socket through its raw descriptor, with or without waiting, and without allocating. One
// goroutine at a time may use it.
type writer struct {
	rc   syscall.RawConn
	fn   func(fd uintptr) bool
	buf  []byte
	n    int
	err  error
	wait bool
}

func newWriter(rc syscall.RawConn) *writer {
	w := &writer{rc: rc}
	w.fn = w.step
	return w
}

// write writes what the kernel takes now: n < len(b) with a nil error means that it would take no more.
func (w *writer) write(b []byte) (n int, err error) { return w.run(b, false) }

// writeWait waits until the kernel takes at least one byte.
func (w *writer) writeWait(b []byte) (n int, err error) { return w.run(b, true) }

func (w *writer) run(b []byte, wait bool) (int, error) {
	w.buf, w.n, w.err, w.wait = b, 0, nil, wait
	err := w.rc.Write(w.fn)
	w.buf = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}

func (w *writer) step(fd uintptr) bool {
	for {
		n, err := unix.Write(int(fd), w.buf)
		switch err {
		case nil:
			w.n = n
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return !w.wait
		default:
			w.err = err
			return true
		}
	}
}

// rawRead reads once without waiting: again is true when nothing is there yet.
func rawRead(fd uintptr, b []byte) (n int, again bool, err error) {
	for {
		n, err := unix.Read(int(fd), b)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, true, nil
		case err != nil:
			return 0, false, err
		case n == 0:
			return 0, false, io.EOF
		default:
			return n, false, nil
		}
	}
}

// rawPeek looks without reading: again is true when nothing is there yet, the error is io.EOF at the end.
func rawPeek(fd uintptr) (again bool, err error) {
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return true, nil
		case err == nil && n == 0:
			return false, io.EOF
		default:
			return false, err
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
