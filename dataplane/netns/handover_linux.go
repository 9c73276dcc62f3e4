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

// inFlight is how many connections may be on their way to a listener without being counted anywhere.
const inFlight = 16

// HandOver closes l without resetting anyone: it steers new connections to the newest other listener of l's SO_REUSEPORT
// group, gives serve every connection that is queued at l or whose handshake has begun, and then closes l. serve must not
// block. The caller has stopped accepting from l before (l.SetDeadline wakes it). Without another listener, what is queued
// at l by then is served all the same, and nothing that comes later. When ctx ends first, l is closed and ctx's error
// returned.
//
// The steering stays with the group after l is gone, where it names no listener, so that the kernel spreads connections
// evenly again. A listener that joins takes it away (ListenTCP); HandOver sees that and steers anew.
func HandOver(ctx context.Context, l *net.TCPListener, serve func(*net.TCPConn)) error {
	defer l.Close()
	if err := handOver(ctx, l, serve); err != nil {
		return fmt.Errorf("hand over %s: %w", l.Addr(), err)
	}
	return nil
}

func handOver(ctx context.Context, l *net.TCPListener, serve func(*net.TCPConn)) error {
	s, err := steer(l, 0)
	if err != nil || !s.away {
		_, short := drainQueue(ctx, l, s.queued, serve)
		return errors.Join(err, short)
	}
	for attempt, again := 1, false; ; {
		drained := len(s.pending) == 0
		most := s.queued + len(s.pending) + inFlight
		n, err := drainQueue(ctx, l, most, serve)
		if err != nil {
			return err
		}
		now, err := look(l)
		if err != nil {
			return err
		}
		switch {
		case n == most:
			// More than there were: the steering leads here. Which number a listener has is a guess where three met.
			s, err = steer(l, attempt)
			attempt, again = attempt+1, false
		case !now.group.equal(s.group):
			s, err = steer(l, attempt-1)
			again = false
		case !again:
			// Another processor may have been about to begin a handshake when the steering changed: by now it is listed.
			again = true
			s.pending, s.queued = now.pending, now.queued
		case drained:
			return nil
		default:
			s.pending, s.queued = now.stillPending(s.pending), now.queued
		}
		if err != nil {
			return err
		}
		if !s.away { // the last other listener is gone
			_, err := drainQueue(ctx, l, s.queued, serve)
			return err
		}
	}
}

// drainQueue serves what can be accepted now or within handOverPoll, but no more than most. It returns how many that was.
func drainQueue(ctx context.Context, l *net.TCPListener, most int, serve func(*net.TCPConn)) (n int, err error) {
	for {
		if err := ctx.Err(); err != nil || n >= most {
			return n, err
		}
		if err := l.SetDeadline(time.Now().Add(handOverPoll)); err != nil {
			return n, err
		}
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return n, nil
		case err != nil:
			return n, err
		}
		n++
		serve(c)
	}
}

// situation is what a listener that closes has to reckon with.
type situation struct {
	group   group
	away    bool              // another listener was steered to
	queued  int               // connections that wait to be accepted
	pending map[socketID]bool // handshakes that may still end in l's queue
}

// steer sends the group's new connections to the newest listener but l, or with attempt > 0 to the one after that many
// others, and returns what has reached l before.
func steer(l *net.TCPListener, attempt int) (s situation, err error) {
	err = controlListener(l, func(fd int) error {
		// First of all, for what there is without a successor; the handshakes are listed when no more can begin.
		if s.queued, err = queued(fd); err != nil {
			return err
		}
		if s.group, err = groupOf(fd); err != nil {
			return fmt.Errorf("find a successor: %w", err)
		}
		target := s.group.candidate(attempt)
		if s.away = target >= 0; !s.away {
			return nil
		}
		if err := attachSteering(fd, target); err != nil {
			return fmt.Errorf("steer to a successor: %w", err)
		}
		if s.pending, err = halfOpen(fd); err != nil {
			return err
		}
		s.queued, err = queued(fd)
		return err
	})
	return s, err
}

// look is steer without steering.
func look(l *net.TCPListener) (s situation, err error) {
	err = controlListener(l, func(fd int) (err error) {
		if s.group, err = groupOf(fd); err != nil {
			return err
		}
		if s.pending, err = halfOpen(fd); err != nil {
			return err
		}
		s.queued, err = queued(fd)
		return err
	})
	return s, err
}

func controlListener(l *net.TCPListener, use func(fd int) error) error {
	rc, err := l.SyscallConn()
	if err != nil {
		return err
	}
	return controlRaw(rc, use)
}

// queued is how many connections wait to be accepted from a listening socket: there, the field means that.
func queued(fd int) (int, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	return int(info.Unacked), nil
}

// attachSteering makes the kernel pick the group's listener number index.
func attachSteering(fd, index int) error {
	program := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: uint32(index)}}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	return os.NewSyscallError("setsockopt SO_ATTACH_REUSEPORT_CBPF", err)
}

// detachSteering takes away what an earlier member's HandOver left with the group, which would send everything to the
// newest member from now on, however far that has come. Kernels before 5.3 cannot.
func detachSteering(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOPROTOOPT) {
		return nil
	}
	return os.NewSyscallError("setsockopt SO_DETACH_REUSEPORT_BPF", err)
}

// stillPending keeps those of before that have not completed their handshake.
func (s situation) stillPending(before map[socketID]bool) map[socketID]bool {
	left := map[socketID]bool{}
	for id := range s.pending {
		if before[id] {
			left[id] = true
		}
	}
	return left
}
