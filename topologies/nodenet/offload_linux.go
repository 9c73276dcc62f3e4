// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/nodenet/nft"
)

// offload is a feature of a device by its requests of the ethtool interface (linux/ethtool.h), whose value is 0 or 1.
type offload struct {
	name     string
	get, set uint32
}

var (
	segmentation = []offload{
		{"TCP segmentation offload", 0x1e, 0x1f}, {"generic segmentation offload", 0x23, 0x24},
	}
	// usual are those that the kernel turns on for a new cable.
	usual = append([]offload{
		{"scatter-gather", 0x18, 0x19}, {"transmit checksum offload", 0x16, 0x17}, {"receive checksum offload", 0x14, 0x15},
	}, segmentation...)
	offloads = append([]offload{{"generic receive offload", 0x2b, 0x2c}}, usual...)
)

// PlainPackets turns the offloads of a link in ns (nil: the caller's own) off: every packet that is sent on it is then no larger than its
// MTU and has its checksum, as on a wire.
func PlainPackets(ctx context.Context, ns *netns.NS, link string) error {
	return nft.Inside(ctx, ns, "make packets plain", func() error { return plainPackets(link) })
}

func plainPackets(link string) error {
	_, err := change(link, offloads, 0)
	return err
}

// UseOffloads turns on the offloads of a link in ns (nil: the caller's own) that the kernel turns on for a new cable.
func UseOffloads(ctx context.Context, ns *netns.NS, link string) error {
	return nft.Inside(ctx, ns, "use offloads", func() error {
		_, err := change(link, usual, 1)
		return err
	})
}

// NoSegmentation turns segmentation offload of a link in ns (nil: the caller's own) off: every packet that is sent on it is one of the
// wire's. restore turns on what was on; that the link is gone by then is no error.
func NoSegmentation(ns *netns.NS, link string) (restore func() error, err error) {
	var changed []offload
	err = inside(ns, func() (err error) {
		changed, err = change(link, segmentation, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return func() error {
		err := inside(ns, func() error {
			_, err := change(link, changed, 1)
			return err
		})
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	}, nil
}

// Offloads are the names of those that a link in ns (nil: the caller's own) has on.
func Offloads(ns *netns.NS, link string) (on []string, err error) {
	err = inside(ns, func() error {
		return withSocket(func(fd int) error {
			for _, o := range offloads {
				value, err := ethtool(fd, link, o.get, 0)
				switch {
				case err != nil && !errors.Is(err, unix.EOPNOTSUPP):
					return fmt.Errorf("read %s of %s: %w", o.name, link, err)
				case value != 0:
					on = append(on, o.name)
				}
			}
			return nil
		})
	})
	return on, err
}

// inside runs fn in ns, or in the caller's own namespace.
func inside(ns *netns.NS, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return ns.Do(fn)
}

// withSocket lends a socket for ioctls.
func withSocket(fn func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	return fn(fd)
}

// change sets features and returns those that were otherwise before.
func change(link string, features []offload, value uint32) (changed []offload, err error) {
	err = withSocket(func(fd int) error {
		for _, o := range features {
			was, err := ethtool(fd, link, o.get, 0)
			if err == nil && was != value {
				changed = append(changed, o)
				_, err = ethtool(fd, link, o.set, value)
			}
			if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("set %s of %s to %d: %w", o.name, link, value, err)
			}
		}
		return nil
	})
	return changed, err
}

// ethtool is ioctl(SIOCETHTOOL) with a struct ethtool_value.
func ethtool(fd int, link string, request, data uint32) (uint32, error) {
	value := struct{ cmd, data uint32 }{request, data}
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of the kernel's union
	}
	copy(ifr.name[:unix.IFNAMSIZ-1], link)
	ifr.data = unsafe.Pointer(&value)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr)))
	if errno != 0 {
		return 0, errno
	}
	return value.data, nil
}
