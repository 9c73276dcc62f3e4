// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"io"
	"net"
	"net/netip"
	"syscall"
	"unsafe"
)

// writer writes to a socket through its raw descriptor, with or without waiting, and without allocating. One
// goroutine at a time may use it.
type writer struct {
	rc   syscall.RawConn
	fd   int // with rc nil, which cannot wait
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
	var err error
	if w.rc == nil {
		w.step(uintptr(w.fd))
	} else {
		err = w.rc.Write(w.fn)
	}
	w.buf = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}

func (w *writer) step(fd uintptr) bool {
	for {
		n, err := rawCall(syscall.SYS_WRITE, fd, w.buf, 0)
		switch err {
		case 0:
			w.n = n
			return true
		case syscall.EINTR:
		case syscall.EAGAIN:
			return !w.wait
		default:
			w.err = err
			return true
		}
	}
}

// rawCall is a system call on a non-blocking socket. As it cannot wait, the scheduler is not told (which costs more
// than a call on a small buffer, lets another thread take the processor during one on a large buffer, and wakes the runtime's
// monitor thread if the process was idle a moment ago).
func rawCall(trap, fd uintptr, b []byte, flags uintptr) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
	return int(n), err
}

// rawRead reads once without waiting: again is true when nothing is there yet.
func rawRead(fd uintptr, b []byte) (n int, again bool, err error) {
	for {
		n, err := rawCall(syscall.SYS_READ, fd, b, 0)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return 0, true, nil
		case err != 0:
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
		n, err := rawCall(syscall.SYS_RECVFROM, fd, b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return true, nil
		case err != 0:
			return false, err
		case n == 0:
			return false, io.EOF
		default:
			return false, nil
		}
	}
}

// moved is how many bytes the peer's kernel has taken and sent so far; 0 when nobody knows.
func moved(rc syscall.RawConn) (bytes uint64) {
	_ = rc.Control(func(fd uintptr) {
		var info struct {
			_               [120]byte
			acked, received uint64 // tcpi_bytes_acked, tcpi_bytes_received
		}
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := syscall.RawSyscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno == 0 {
			bytes = info.acked + info.received
		}
	})
	return bytes
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
