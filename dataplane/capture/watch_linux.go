// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// Watch calls changed whenever somebody, Apply too, has changed nftables rules in the namespace, until ctx ends; then it
// returns nil. Changes that come within a moment of each other are told once. Policy routes are not watched. It holds one
// socket.
func Watch(ctx context.Context, ns *netns.NS, changed func()) error {
	f, err := subscribe(ns)
	if err != nil {
		return fmt.Errorf("watch the rules of %s: %w", ns, err)
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, 4096) // what a message says does not matter, so it may be cut off
	for {
		_, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS): // events were lost: they were events
			return fmt.Errorf("watch the rules of %s: %w", ns, err)
		}
		moment := time.NewTimer(settle)
		select {
		case <-ctx.Done():
			moment.Stop()
			return nil
		case <-moment.C:
		}
		if err := drain(f); err != nil {
			return fmt.Errorf("watch the rules of %s: %w", ns, err)
		}
		changed()
	}
}

// settle is how long Watch waits for further changes after one.
const settle = 50 * time.Millisecond

// subscribe opens a socket on the kernel's notifications about nftables.
func subscribe(ns *netns.NS) (*os.File, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return os.NewSyscallError("bind", err)
		}
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
		return os.NewSyscallError("setsockopt NETLINK_ADD_MEMBERSHIP", err)
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), "nftables events"), nil
}

// drain reads what is there, and of a flood a part.
func drain(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	return rc.Read(func(fd uintptr) bool {
		for range 1000 {
			if _, err := unix.Read(int(fd), buf); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
				return true
			}
		}
		return true
	})
}
