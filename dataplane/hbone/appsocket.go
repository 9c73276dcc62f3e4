// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"os"
	"syscall"
	"time"
)

// appSocket is an application's connection. The runtime's poller waits for it, or nothing does but the watcher, while the
// stream rests: what the poller keeps of a descriptor is never given back either. Guarded by stream.mu.
type appSocket struct {
	polled Socket  // nil before relay, while apart and once closed
	out    *writer // nil before relay
	fd     int     // while apart
	apart  bool
}

// Socket is an application's TCP connection: a *net.TCPConn, or an *os.File that the runtime polls.
type Socket interface {
	SyscallConn() (syscall.RawConn, error)
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	Close() error
}

// there reports whether there is an application to write to.
func (a *appSocket) there() bool { return a.polled != nil || a.apart }

// part takes the socket from the poller. Nobody may be waiting for it. Where there is no descriptor left it changes nothing.
func (a *appSocket) part() {
	if a.polled == nil {
		return
	}
	_ = a.out.rc.Control(func(fd uintptr) {
		n, _, errno := syscall.RawSyscall(syscall.SYS_FCNTL, fd, syscall.F_DUPFD_CLOEXEC, 0)
		a.fd, a.apart = int(n), errno == 0
	})
	if a.apart {
		_ = a.polled.Close() // the other descriptor of the same socket
		a.polled, a.out.rc, a.out.fd = nil, nil, a.fd
	}
}

// rejoin gives the socket to the poller.
func (a *appSocket) rejoin() {
	if !a.apart {
		return
	}
	f := os.NewFile(uintptr(a.fd), "application") // as it does not block, the runtime polls it
	rc, _ := f.SyscallConn()                      // an *os.File always has one
	a.polled, a.out.rc, a.apart = f, rc, false
}

// control calls use with the descriptor, if there is one.
func (a *appSocket) control(use func(fd int)) {
	switch {
	case a.apart:
		use(a.fd)
	case a.polled != nil:
		_ = a.out.rc.Control(func(fd uintptr) { use(int(fd)) })
	}
}

func (a *appSocket) closeWrite() {
	a.control(func(fd int) { rawShutdown(fd, syscall.SHUT_WR) })
}

// finish closes a connection whose both directions have come to their end.
func (a *appSocket) finish() {
	if a.polled == nil {
		a.close(false)
		return
	}
	a.control(func(fd int) { rawShutdown(fd, syscall.SHUT_RDWR) })
	closing.add(a.polled)
	a.polled = nil
}

// close ends the connection, by a reset if told to.
func (a *appSocket) close(reset bool) {
	if reset {
		a.control(func(fd int) {
			_ = syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
		})
	}
	switch {
	case a.apart:
		_ = syscall.Close(a.fd)
	case a.polled != nil:
		_ = a.polled.Close()
	}
	a.polled, a.apart = nil, false
}
