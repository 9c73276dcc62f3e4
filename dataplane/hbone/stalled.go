// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"slices"
	"time"
)

// A peer that gives a stream no window though its application has something to say, and goes on sending, has the kernel and
// the application hold what it sends and what that is answered with: more than 1 MiB for each stream with the application's
// send buffer alone, and all the work of moving it. Such a stream is stalled. Those of a client, over all its connections,
// share what they are granted: one at a time, its start window at most, every stallGap. That is slow, but no bound: an
// application that only answers once it has everything, or a peer that reads only then, is served as before.
const (
	stallAfter = 100 * time.Millisecond // longer than the window of an honest peer takes to come back from another region
	stallGap   = 4 * time.Millisecond
)

// stalls are the streams whose credit is withheld, in the order in which it became due. Guarded by control.mu.
type stalls struct {
	waiting []*stream
	timer   *time.Timer
	ticking bool
}

// stall notes that the application has something to say that there is no window for, and since when. A peer that never gave
// any is not waited for. The caller is in relay. Servers alone do so: it is their clients that choose how much to open.
func (s *stream) stall() {
	if s.c.client || s.stalledAt.Load() != 0 {
		return
	}
	at := time.Since(s.c.since)
	if s.bytesOut == 0 { // only this goroutine writes it
		at -= stallAfter
	}
	s.stalledAt.Store(int64(at))
}

// unstall notes that something was sent.
func (s *stream) unstall() {
	if s.stalledAt.Load() == 0 {
		return
	}
	s.stalledAt.Store(0)
	c := s.c
	k := &c.control
	k.mu.Lock()
	if s.withheld {
		s.withheld = false
		k.stalls.waiting = slices.DeleteFunc(k.stalls.waiting, func(o *stream) bool { return o == s })
		c.announce(s)
	}
	k.mu.Unlock()
}

// isStalled reports whether a stream is to wait for credit that is due.
func (s *stream) isStalled() bool {
	at := s.stalledAt.Load()
	return at != 0 && time.Since(s.c.since)-time.Duration(at) >= stallAfter
}

// withhold keeps the credit of s back until its turn. control.mu is held.
func (c *conn) withhold(s *stream) {
	l := &c.control.stalls
	if s.withheld {
		return
	}
	s.withheld = true
	if l.waiting = append(l.waiting, s); !l.ticking {
		c.tickStalls()
	}
}

func (c *conn) tickStalls() {
	l := &c.control.stalls
	l.ticking = true
	d := c.cfg.Guard.turn(c.remote.Addr(), toSend, stallGap)
	if l.timer == nil {
		l.timer = time.AfterFunc(d, c.passStall)
		return
	}
	l.timer.Reset(d)
}

// passStall grants the next one what is due.
func (c *conn) passStall() {
	k := &c.control
	l := &k.stalls
	k.mu.Lock()
	if l.ticking = len(l.waiting) > 0; l.ticking {
		s := l.waiting[0]
		l.waiting = slices.Delete(l.waiting, 0, 1)
		s.withheld = false
		if !s.recvClosed && s.credit > 0 {
			c.queueUpdate(s)
		}
		c.tickStalls()
	}
	k.mu.Unlock()
	c.kick()
}
