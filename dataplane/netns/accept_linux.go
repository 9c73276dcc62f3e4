// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Acceptor accepts a listener's connections for who needs the sockets alone: with half the system calls of AcceptTCP, and none
// that Go's scheduler is told of. It works on a duplicate of the listener, which stays its owner's.
type Acceptor struct {
	f  *os.File
	rc syscall.RawConn
}

// NewAcceptor returns an acceptor for l; Stop ends it.
func NewAcceptor(l *net.TCPListener) (*Acceptor, error) {
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Acceptor{f: f, rc: rc}, nil
}

// Stop wakes Accept, whose error then matches os.ErrClosed. What is queued at the listener stays there.
func (a *Acceptor) Stop() { _ = a.f.Close() }

// Accept waits for a connection and returns it with its peer's address. It has the listener's options. One goroutine at a time
// may call it.
func (a *Acceptor) Accept() (*os.File, netip.AddrPort, error) {
	var (
		fd    uintptr
		peer  unix.RawSockaddrInet6
		errno syscall.Errno
	)
	err := a.rc.Read(func(l uintptr) bool {
		for {
			size := uint32(unsafe.Sizeof(peer))
			fd, _, errno = syscall.RawSyscall6(unix.SYS_ACCEPT4, l, uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size)),
				unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
			switch errno {
			case unix.EINTR, unix.ECONNABORTED: // the latter was reset while it waited
			default:
				return errno != unix.EAGAIN
			}
		}
	})
	switch {
	case err != nil:
		return nil, netip.AddrPort{}, os.ErrClosed // the only reason; package os returns an error of its poller here
	case errno != 0:
		return nil, netip.AddrPort{}, os.NewSyscallError("accept4", errno)
	}
	return os.NewFile(fd, "accepted connection"), decode(&peer), nil
}

// AsFile gives up c for its socket alone. After an error c is as it was.
func AsFile(c *net.TCPConn) (*os.File, error) {
	f, err := c.File()
	if err == nil {
		c.Close()
	}
	return f, err
}

// AsTCP gives up f, a connection, for package net's view of it. After an error f is as it was.
func (o SocketOptions) AsTCP(f *os.File) (*net.TCPConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tc, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, errors.New("not a TCP connection")
	}
	if err := o.tune(tc); err != nil {
		c.Close()
		return nil, err
	}
	f.Close() // the other is a duplicate
	return tc, nil
}

// ResetOnClose has the end of a connection be a reset. It does nothing to one that is closed.
func ResetOnClose(c syscall.Conn) {
	rc, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = controlRaw(rc, func(fd int) error {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
}
