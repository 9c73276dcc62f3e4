// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Calls that cannot wait are made without telling Go's scheduler. That is cheap to tell by itself, but the first such call after
// a moment without work wakes the runtime's monitor thread, which then looks every 20 µs whether one of them does wait. For a
// proxy that opens connections at its limit that thread was every other context switch and a tenth of its CPU; it sleeps
// only if none of what a connection takes wakes it.

// sockaddr is an address as the kernel reads it.
type sockaddr struct {
	raw  unix.RawSockaddrInet6 // or what of it is a RawSockaddrInet4
	size uintptr
}

func encode(sa unix.Sockaddr) (s sockaddr) {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		v4.Family, v4.Port, v4.Addr = unix.AF_INET, bigEndian(sa.Port), sa.Addr
		s.size = unix.SizeofSockaddrInet4
	case *unix.SockaddrInet6:
		s.raw = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: bigEndian(sa.Port), Addr: sa.Addr, Scope_id: sa.ZoneId}
		s.size = unix.SizeofSockaddrInet6
	}
	return s
}

// bigEndian is a port in the order of the network.
func bigEndian(port int) (raw uint16) {
	b := (*[2]byte)(unsafe.Pointer(&raw))
	b[0], b[1] = byte(port>>8), byte(port)
	return raw
}

// decode is encode's reverse.
func decode(raw *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&raw.Port))
	addr := netip.AddrFrom16(raw.Addr).Unmap()
	if raw.Family == unix.AF_INET {
		addr = netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(raw)).Addr)
	}
	return netip.AddrPortFrom(addr, uint16(port[0])<<8|uint16(port[1]))
}

func (s *sockaddr) bind(fd int) error {
	_, _, errno := syscall.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&s.raw)), s.size)
	return callError("bind", errno)
}

// connect begins to connect a socket that does not block, or looks how far that has come: nil is connected, EALREADY not yet.
func (s *sockaddr) connect(fd int) error {
	_, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&s.raw)), s.size)
	return callError("connect", errno)
}

func getsockname(fd int, raw *unix.RawSockaddrInet6) error {
	size := uint32(unsafe.Sizeof(*raw))
	_, _, errno := syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(raw)), uintptr(unsafe.Pointer(&size)))
	return callError("getsockname", errno)
}

func setsockoptInt(fd, level, id, value int) error {
	v := int32(value)
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(id), uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func setns(fd int) error {
	_, _, errno := syscall.RawSyscall(unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWNET, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func callError(call string, errno syscall.Errno) error {
	if errno != 0 {
		return os.NewSyscallError(call, errno)
	}
	return nil
}
