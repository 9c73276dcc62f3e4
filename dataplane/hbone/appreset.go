// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"net"
	"syscall"
	"time"
	"unsafe"
)

// resetCheck is how often a stream that waits for window looks whether its application is still there. Nobody else
// would notice: the socket is not read meanwhile.
const resetCheck = 2 * time.Second

// awaitWindow waits until something changed for the stream, or the application is to be looked at.
func (s *stream) awaitWindow() {
	r := &s.reader
	if r.check == nil {
		r.check = time.AfterFunc(resetCheck, s.signal)
	} else {
		r.check.Reset(resetCheck)
	}
	<-s.wake
	r.check.Stop()
}

// Poll events.
const (
	pollErr   = 0x8
	pollHup   = 0x10
	pollRdHup = 0x2000
)

// rawPoll looks at a socket without waiting.
func rawPoll(fd uintptr, events int16) int16 {
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: events}
	var now syscall.Timespec
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return p.revents
}

// rawReset returns the error of a socket that was reset, also while bytes wait in front of it.
func rawReset(fd uintptr) error {
	if rawPoll(fd, 0)&pollErr == 0 {
		return nil
	}
	if n, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR); err == nil && n != 0 {
		return syscall.Errno(n)
	}
	return nil
}

// gone reports whether the peer of a new connection has left while it waited for its turn, though what it sent is there.
func gone(t *net.TCPConn) bool {
	rc, err := t.SyscallConn()
	if err != nil {
		return true
	}
	left := false
	err = rc.Control(func(fd uintptr) { left = rawPoll(fd, pollRdHup)&(pollErr|pollHup|pollRdHup) != 0 })
	return left || err != nil
}
