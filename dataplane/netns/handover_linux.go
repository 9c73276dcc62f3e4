// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// handOverPoll is how often HandOver looks whether half-open handshakes are through while nothing can be accepted.
const handOverPoll = 5 * time.Millisecond

// HandOver closes l without resetting anyone: it steers new connections to the newest other listener of l's SO_REUSEPORT
// group, gives serve every connection that is queued at l or whose handshake has begun, and then closes l. serve must not
// block. The caller has stopped accepting from l before (l.SetDeadline wakes it). Without another listener, what is queued
// is served all the same. When ctx ends first, l is closed and ctx's error returned.
//
// The steering stays with the group after l is gone; the kernel spreads connections evenly again while it names no listener.
func HandOver(ctx context.Context, l *net.TCPListener, o SocketOptions, serve func(*net.TCPConn)) error {
	defer l.Close()
	pending, steerErr := steer(l)
	if steerErr != nil {
		steerErr = fmt.Errorf("steer %s to its successor: %w", l.Addr(), steerErr)
	}
	for {
		if err := ctx.Err(); err != nil {
			return errors.Join(steerErr, fmt.Errorf("hand over %s: %w", l.Addr(), err))
		}
		drained := len(pending) == 0
		if err := drainQueue(l, o, serve); err != nil {
			return errors.Join(steerErr, fmt.Errorf("hand over %s: %w", l.Addr(), err))
		}
		if drained {
			return steerErr
		}
		var err error
		if pending, err = stillPending(l, pending); err != nil {
			return errors.Join(steerErr, fmt.Errorf("hand over %s: %w", l.Addr(), err))
		}
	}
}

// drainQueue serves what can be accepted now or within handOverPoll.
func drainQueue(l *net.TCPListener, o SocketOptions, serve func(*net.TCPConn)) error {
	for {
		if err := l.SetDeadline(time.Now().Add(handOverPoll)); err != nil {
			return err
		}
		c, err := Accept(l, o)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
		serve(c)
	}
}

// steer sends the group's new connections to the newest listener but l, and returns the handshakes that are under way and
// may still end in l's queue.
func steer(l *net.TCPListener) (map[socketID]bool, error) {
	rc, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var pending map[socketID]bool
	err = controlRaw(rc, func(fd int) error {
		group, err := groupOf(fd)
		if err != nil {
			return err
		}
		if target := group.successor(); target >= 0 {
			if err := attachSteering(fd, target); err != nil {
				return err
			}
		}
		pending, err = halfOpen(fd)
		return err
	})
	return pending, err
}

// attachSteering makes the kernel pick the group's listener number index.
func attachSteering(fd, index int) error {
	program := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: uint32(index)}}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	return os.NewSyscallError("setsockopt SO_ATTACH_REUSEPORT_CBPF", err)
}

// stillPending keeps those of pending that have not completed their handshake.
func stillPending(l *net.TCPListener, pending map[socketID]bool) (map[socketID]bool, error) {
	rc, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	left := map[socketID]bool{}
	err = controlRaw(rc, func(fd int) error {
		now, err := halfOpen(fd)
		for id := range now {
			if pending[id] {
				left[id] = true
			}
		}
		return err
	})
	return left, err
}
