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

// reserve takes up to limit bytes of stream and connection window, without waiting; 0 means there is none, or no room
// for a batch.
func (c *conn) reserve(s *stream, limit int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave(s)
	n := min(int64(limit), s.sendWindow, c.send.window)
	if !c.usable(n) || !c.rec.room() {
		n = 0
	}
	s.sendWindow -= n
	c.send.window -= n
	c.passOn()
	return int(n)
}

// unreserve returns window that was not used; a stream that is gone returns the connection's alone.
func (c *conn) unreserve(s *stream, n int) {
	c.mu.Lock()
	s.sendWindow += int64(n)
	c.send.window += int64(n)
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
	c.passOn()
	c.mu.Unlock()
}

// windowUpdate implements sink.
func (c *conn) windowUpdate(id, increment uint32) error {
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
		s.fail(http2.ErrCodeProtocol, &ResetError{Code: http2.ErrCodeProtocol})
	case over:
		s.fail(http2.ErrCodeFlowControl, &ResetError{Code: http2.ErrCodeFlowControl})
	default:
		s.signal()
	}
	return nil
}

// setInitialWindow applies the peer's SETTINGS_INITIAL_WINDOW_SIZE to every stream (RFC 9113 §6.9.2).
func (c *conn) setInitialWindow(v uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delta := int64(v) - c.send.initialWindow
	c.send.initialWindow = int64(v)
	for _, s := range c.streams {
		if s.sendWindow += delta; s.sendWindow > 1<<31-1 {
			return connErr(http2.ErrCodeFlowControl, "stream window above 2^31-1 by SETTINGS")
		}
		s.signal()
	}
	return nil
}

// recvFlow is what we let the peer send. Guarded by control.mu, as window updates are control frames in waiting.
//
// window + credit + withheld is constant but for bytes on their way through deliver. The connection's window is given
// back on receipt while its queues hold less than its share; above that, and once the process is short of memory, what
// they hold is withheld until the kernel takes it. As long as memory is plenty a connection may queue more: 150 stalled
// streams of 512 KiB would otherwise leave their neighbours no window at all. The protocol's smallest window always
// stays, for a neighbour without any window would be cut off by an application that is not its own.
type recvFlow struct {
	window   int64
	credit   int64 // to be announced
	queued   int64 // bytes in the connection's queues
	withheld int64
}

// due reports whether it is time to announce credit: a good part of the window, or more than what the peer has left.
func due(credit, window int64, full int32) bool {
	return credit > 0 && (credit >= int64(full)/2 || credit > window)
}

// charge takes a DATA frame's whole length from both windows. s may be nil.
func (c *conn) charge(s *stream, n int64) (connOver, streamOver bool) {
	k := &c.control
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.recv.window -= n; k.recv.window < 0 {
		return true, false
	}
	if s != nil {
		s.recvWindow -= n
		return false, s.recvWindow < 0
	}
	return false, false
}

// giveBack returns n received bytes to the connection's window, of which queued went into a queue; n = 0 and a
// negative queued say that the kernel took bytes from a queue, or that a queue was dropped.
func (c *conn) giveBack(n, queued int) {
	if queued != 0 {
		c.cfg.Budget.used.Add(int64(queued))
	}
	k := &c.control
	k.mu.Lock()
	r := &k.recv
	r.credit += int64(n)
	r.queued += int64(queued)
	withhold := int64(0)
	if full := int64(c.cfg.ConnWindow); r.queued > full && c.cfg.Budget.scarce() {
		withhold = max(0, min(r.queued-full, full-floorWindow))
	}
	r.credit -= withhold - r.withheld
	r.withheld = withhold
	if due(r.credit, r.window, c.cfg.ConnWindow) {
		c.controlPending.Store(true)
	}
	k.mu.Unlock()
}

// giveBackStream returns n bytes that the kernel took to the stream's window.
func (c *conn) giveBackStream(s *stream, n int) {
	k := &c.control
	k.mu.Lock()
	s.credit += int64(n)
	if !s.announcing && !s.recvClosed && due(s.credit, s.recvWindow, c.cfg.StreamWindow) {
		s.announcing = true
		k.updates = append(k.updates, s)
		c.controlPending.Store(true)
	}
	k.mu.Unlock()
}

// connGrant says how much credit to announce for the connection now, and books it. Above the budget the peer gets no
// more than the protocol's smallest window.
func (c *conn) connGrant() uint32 {
	r := &c.control.recv
	if !due(r.credit, r.window, c.cfg.ConnWindow) {
		return 0
	}
	n := r.credit
	if c.cfg.Budget.exceeded() {
		n = min(n, max(0, floorWindow-r.window))
	}
	r.credit -= n
	r.window += n
	return uint32(n)
}
