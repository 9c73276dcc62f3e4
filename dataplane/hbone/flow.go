// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"golang.org/x/net/http2"
)

// floorWindow is the protocol's initial window: what a connection is granted even when memory is short.
const floorWindow = 65535

// sendFlow is what the peer lets us send, and who waits for it. Guarded by conn.mu.
type sendFlow struct {
	window        int64 // of the connection
	initialWindow int64 // of new streams
	forWindow     waitList
	forRoom       waitList
}

// waitList is a queue of streams that wait for the same thing. A stream is in one list at most.
type waitList struct{ first, last *stream }

func (l *waitList) push(s *stream) {
	if s.waitsIn != nil {
		s.waitsIn.remove(s)
	}
	s.waitsIn, s.prev, s.next = l, l.last, nil
	if l.last == nil {
		l.first = s
	} else {
		l.last.next = s
	}
	l.last = s
}

func (l *waitList) remove(s *stream) {
	if s.prev == nil {
		l.first = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		l.last = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.waitsIn, s.prev, s.next = nil, nil, nil
}

// leave takes s out of whatever list it waits in.
func (c *conn) leave(s *stream) {
	if s.waitsIn != nil {
		s.waitsIn.remove(s)
		c.waiting.Add(-1)
	}
}

// passOn wakes the next waiter of each list if what it waits for is there. Every holder of conn.mu that took, returned
// or gained window, or that leaves without using its turn, calls it: so one waiter is always on its way.
func (c *conn) passOn() {
	if !c.rec.room() {
		return
	}
	if s := c.send.forRoom.first; s != nil {
		c.leave(s)
		s.signal()
	}
	if s := c.send.forWindow.first; s != nil && c.usable(c.send.window) {
		c.leave(s)
		s.signal()
	}
}

// roomMade is called when bytes were flushed.
func (c *conn) roomMade() {
	if c.waiting.Load() > 0 {
		c.mu.Lock()
		c.passOn()
		c.mu.Unlock()
	}
}

// sillyWindow is the least window worth sending into; what is less waits for more, which a peer grants once it has
// taken what is under way. Without it the few bytes that a window leaves beyond whole chunks become frames.
const sillyWindow = 1 << 10

// usable reports whether w bytes are worth sending. c.mu is held.
func (c *conn) usable(w int64) bool { return w > 0 && w >= min(sillyWindow, c.send.initialWindow/4) }

// reserve takes up to limit bytes of stream and connection window and of room, without waiting; 0 means that there is
// none.
func (c *conn) reserve(s *stream, limit int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave(s)
	s.starved = false
	n := min(int64(limit), s.sendWindow, c.send.window)
	if !c.usable(n) || !c.rec.room() {
		n = 0
	}
	s.sendWindow -= n
	c.send.window -= n
	c.rec.claimed.Add(n)
	c.passOn()
	return int(n)
}

// unreserve returns window that was not used; a stream that is gone returns the connection's alone.
func (c *conn) unreserve(s *stream, n int) {
	c.mu.Lock()
	s.sendWindow += int64(n)
	c.send.window += int64(n)
	c.rec.claimed.Add(-int64(n))
	c.passOn()
	c.mu.Unlock()
}

// enlist makes s wait for room, and for window if it says so; it reports false when there is some already, or the
// connection has failed.
func (c *conn) enlist(s *stream, forWindow bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed {
		return false
	}
	list := &c.send.forRoom
	if forWindow {
		if !c.usable(s.sendWindow) {
			s.starved = true
			return true // a WINDOW_UPDATE for the stream signals it
		}
		list = &c.send.forWindow
	}
	c.leave(s)
	list.push(s)
	c.waiting.Add(1)
	// Looked at only now, so that a flusher that saw no one waiting had made its room before.
	if c.rec.room() && (!forWindow || c.usable(c.send.window)) {
		c.leave(s)
		return false
	}
	return true
}

// withdraw ends s's waiting and passes its turn on.
func (c *conn) withdraw(s *stream) {
	c.mu.Lock()
	c.leave(s)
	s.starved = false
	c.passOn()
	c.mu.Unlock()
}

// windowUpdate implements sink.
func (c *conn) windowUpdate(id, increment uint32) error {
	if err := c.updated(); err != nil {
		return err
	}
	if id == 0 {
		if increment == 0 {
			return connErr(http2.ErrCodeProtocol, "WINDOW_UPDATE of 0")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.send.window += int64(increment); c.send.window > 1<<31-1 {
			return connErr(http2.ErrCodeFlowControl, "connection window above 2^31-1")
		}
		c.passOn()
		return nil
	}
	s, err := c.lookup(id)
	if s == nil || err != nil {
		return err
	}
	c.mu.Lock()
	s.sendWindow += int64(increment)
	over := s.sendWindow > 1<<31-1
	c.mu.Unlock()
	switch {
	case increment == 0:
		return c.failFor(s, http2.ErrCodeProtocol)
	case over:
		return c.failFor(s, http2.ErrCodeFlowControl)
	}
	s.signal()
	return nil
}

// setInitialWindow applies the peer's SETTINGS_INITIAL_WINDOW_SIZE to every stream (RFC 9113 §6.9.2). Those that waited for
// window get going one after the other: all at once they would be before everybody else's.
func (c *conn) setInitialWindow(v uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delta := int64(v) - c.send.initialWindow
	if delta < 0 {
		if err := c.shrunk(len(c.streams)); err != nil {
			return err
		}
	}
	c.send.initialWindow = int64(v)
	for _, s := range c.streams {
		if s.sendWindow += delta; s.sendWindow > 1<<31-1 {
			return connErr(http2.ErrCodeFlowControl, "stream window above 2^31-1 by SETTINGS")
		}
		if s.starved && !s.silenced() && c.usable(s.sendWindow) {
			s.starved = false
			c.leave(s)
			c.send.forWindow.push(s)
			c.waiting.Add(1)
		}
	}
	c.passOn()
	return nil
}
