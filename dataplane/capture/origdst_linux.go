// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// originalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST alike.
const originalDst = 80

// OriginalDestination is where the client of a redirected connection wanted to go, by the kernel's connection tracking. An
// IPv4 connection that came in through an IPv6 socket yields an IPv4 address. A connection that was not redirected yields
// the address it came to; one that is not tracked is an error.
func OriginalDestination(c syscall.Conn) (netip.AddrPort, error) {
	var dst netip.AddrPort
	rc, err := c.SyscallConn()
	if err == nil {
		ctlErr := rc.Control(func(fd uintptr) { dst, err = originalDestination(fd) })
		err = errors.Join(ctlErr, err)
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", err)
	}
	return dst, nil
}

func originalDestination(fd uintptr) (netip.AddrPort, error) {
	var local unix.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(local))
	_, _, errno := syscall.RawSyscall(unix.SYS_GETSOCKNAME, fd, uintptr(unsafe.Pointer(&local)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", errno)
	}
	if local.Family == unix.AF_INET6 && !netip.AddrFrom16(local.Addr).Is4In6() {
		return originalDstV6(fd)
	}
	return originalDstV4(fd)
}

func originalDstV4(fd uintptr) (netip.AddrPort, error) {
	var raw unix.RawSockaddrInet4
	err := getsockopt(fd, unix.SOL_IP, unsafe.Pointer(&raw), unix.SizeofSockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(raw.Addr), hostOrder(raw.Port)), err
}

func originalDstV6(fd uintptr) (netip.AddrPort, error) {
	var raw unix.RawSockaddrInet6
	err := getsockopt(fd, unix.SOL_IPV6, unsafe.Pointer(&raw), unix.SizeofSockaddrInet6)
	return netip.AddrPortFrom(netip.AddrFrom16(raw.Addr), hostOrder(raw.Port)), err
}

// getsockopt asks for the original destination. As that cannot wait, the scheduler is not told, which costs more.
func getsockopt(fd uintptr, level int, into unsafe.Pointer, size uint32) error {
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), originalDst, uintptr(into), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return os.NewSyscallError("getsockopt SO_ORIGINAL_DST", errno)
	}
	return nil
}

func hostOrder(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}
