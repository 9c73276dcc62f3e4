// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func usage() (Usage, error) {
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return Usage{}, err
	}
	return Usage{Process: Identity{PID: os.Getpid(), Namespace: ns}, Link: uplink()}, nil
}

// CPUTime is the CPU time that a process has used, user and system, to the nanosecond. It needs no rights, only that the
// process is in this PID namespace (clock_getcpuclockid(3)).
func CPUTime(pid int) (time.Duration, error) {
	const schedClock = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3)|schedClock, &ts); err != nil {
		return 0, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// uplink describes the first link that is not the loopback; zero if there is none.
func uplink() Link {
	links, err := net.Interfaces()
	if err != nil {
		return Link{}
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback == 0 && l.Flags&net.FlagUp != 0 {
			on, err := segmentation(l.Name)
			return Link{MTU: l.MTU, GSO: on && err == nil}
		}
	}
	return Link{}
}

// segmentation asks whether the kernel splits large segments below TCP (ethtool's generic-segmentation-offload).
func segmentation(name string) (bool, error) {
	const getGSO = 0x23 // ETHTOOL_GGSO
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{command: getGSO}
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	if copy(req.name[:unix.IFNAMSIZ-1], name) < len(name) {
		return false, errors.New("the link's name is too long")
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return false, errno
	}
	return value.data != 0, nil
}
