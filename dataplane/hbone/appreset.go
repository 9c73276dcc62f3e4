// SPDX-License-Identifier: Apache-2.0

package hbone

import (
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

// rawReset returns the error of a socket that was reset, also while bytes wait in front of it.
func rawReset(fd uintptr) error {
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd)}
	const pollErr = 0x8
	var now syscall.Timespec
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	if errno != 0 || p.revents&pollErr == 0 {
		return nil
	}
	if n, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR); err == nil && n != 0 {
		return syscall.Errno(n)
	}
	return nil
}
