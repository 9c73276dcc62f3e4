// SPDX-License-Identifier: Apache-2.0

package hbone

import "time"

// busyRound is how long a stream counts as busy.
const busyRound = 200 * time.Millisecond

// recvFlow is what we let the peer send. Guarded by control.mu, as window updates are control frames in waiting.
//
// window + credit + withheld is ConnWindow but for bytes on their way through deliver. The connection's window starts
// at the protocol's 65 535 and doubles as its bytes are taken. It is given back on receipt while the connection's queues
// hold little; when what they hold and the window exceed the connection's allowance, the rest is withheld until the
// kernel takes it. The protocol's smallest window always stays, for a neighbour without any would be cut off by an
// application that is not its own.
//
// A stream's window starts small and doubles each time it is given back, while the kernel takes its bytes at once, up to
// an equal part of the connection's window for each stream that has grown of late. So what streams hold that stop being
// read is about one window together, however many they are, and the others keep theirs.
type recvFlow struct {
	window   int64
	credit   int64 // to be announced
	queued   int64 // bytes in the connection's queues
	full     int64 // what the window has grown to
	withheld int64
	before   int64 // queued at the last grant
	early    int64 // server: queued for requests that are not open yet

	// Who is busy: the streams whose window was given back in this round and the last.
	round   time.Time
	busy    int64
	wasBusy int64
}

func newRecvFlow(cfg *Config) recvFlow {
	start := int64(max(floorWindow, min(cfg.StartWindow, cfg.ConnWindow)))
	return recvFlow{window: start, full: start, withheld: int64(cfg.ConnWindow) - start}
}

// due reports whether it is time to announce credit: a good part of the window, or more than what the peer has left.
func due(credit, window, full int64) bool {
	return credit > 0 && (credit >= full/2 || credit > window)
}

// charge takes a DATA frame's whole length from both windows. s may be nil.
func (c *conn) charge(s *stream, n int64) (connOver, streamOver bool) {
	if n == 0 {
		return false, false // allowed whatever the window (RFC 9113 §6.9)
	}
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

// received books n bytes of s, which may be nil, of which the kernel took some and some were queued. It reports whether s
// is not open yet and holds too much.
func (c *conn) received(s *stream, n, taken, queued int) (tooEarly bool) {
	if queued != 0 {
		c.cfg.Budget.used.Add(int64(queued))
	}
	k := &c.control
	k.mu.Lock()
	k.recv.credit += int64(n)
	k.recv.queued += int64(queued)
	if s != nil && !s.open && !c.client && queued > 0 {
		s.early += int64(queued)
		k.recv.early += int64(queued)
		tooEarly = k.recv.early > earlyMax
	}
	c.settle()
	if s != nil {
		s.queued += int64(queued)
		s.credit += int64(taken)
		c.announce(s)
	}
	k.mu.Unlock()
	return tooEarly
}

// opened says that s has its application, or never will. control.mu is held.
func (r *recvFlow) opened(s *stream) {
	s.open = true
	r.early -= s.early
	s.early = 0
}

// unqueued books n bytes of s that left its queue: taken by the kernel or, with s nil, dropped.
func (c *conn) unqueued(s *stream, n int) {
	if n == 0 {
		return
	}
	c.cfg.Budget.used.Add(-int64(n))
	k := &c.control
	k.mu.Lock()
	k.recv.queued -= int64(n)
	c.settle()
	if s != nil {
		s.queued -= int64(n)
		s.credit += int64(n)
		c.announce(s)
	}
	k.mu.Unlock()
}

// settle withholds what the connection may not be granted now. control.mu is held.
func (c *conn) settle() {
	r := &c.control.recv
	withhold := int64(c.cfg.ConnWindow) - max(floorWindow, min(r.full, c.spare()))
	r.credit -= withhold - r.withheld
	r.withheld = withhold
	if due(r.credit, r.window, int64(c.cfg.ConnWindow)-withhold) {
		c.controlPending.Store(true)
	}
}

// earlyMax bounds what a connection queues for requests that are not open yet. A peer that waits for the answer sends none,
// and one that does not may have as many streams in waiting as it likes, each with a start window of bytes.
const earlyMax = 1 << 20

// spare is what the connection's allowance leaves beside its queues, at most its window. control.mu is held.
func (c *conn) spare() int64 {
	r, full := &c.control.recv, int64(c.cfg.ConnWindow)
	return min(full, min(2*full, c.cfg.Budget.allowance())-r.queued)
}

// announce queues a WINDOW_UPDATE for s if one is due, and decides how large the window is from then on.
// control.mu is held.
func (c *conn) announce(s *stream) {
	if s.announcing || s.recvClosed || !due(s.credit, s.recvWindow, s.window) {
		return
	}
	if s.isStalled() {
		c.resizeTo(s, int64(c.cfg.StartWindow))
		if s.credit > 0 {
			c.withhold(s)
		}
		return
	}
	if c.resize(s); s.credit > 0 {
		c.queueUpdate(s)
	}
}

// queueUpdate has the credit of s written. control.mu is held.
func (c *conn) queueUpdate(s *stream) {
	k := &c.control
	s.announcing = true
	k.updates = append(k.updates, s)
	c.controlPending.Store(true)
}

// resize lets a stream's window grow, or shrink by what would be given back now. control.mu is held.
func (c *conn) resize(s *stream) {
	r := &c.control.recv
	if now := time.Now(); now.Sub(r.round) > busyRound {
		r.wasBusy, r.busy, r.round = r.busy, 0, now
	}
	if !s.round.Equal(r.round) {
		s.round = r.round
		r.busy++
	}
	size := min(int64(c.cfg.StreamWindow), 2*s.window, c.spare()/max(r.busy, r.wasBusy))
	if s.queued > 0 {
		size = min(size, s.window)
		if r.queued > int64(c.cfg.ConnWindow)/2 {
			size = 0
		}
	}
	c.resizeTo(s, max(size, int64(c.cfg.StartWindow)))
}

// resizeTo changes the credit of s so that its window becomes size, or as near as it can. control.mu is held.
func (c *conn) resizeTo(s *stream, size int64) {
	delta := max(size-s.window, -s.credit)
	s.window += delta
	s.credit += delta
}

// acknowledged handles the peer's first SETTINGS acknowledgement: from here on it keeps to the start window. Before, it
// may have sent the protocol's initial window on each stream (RFC 9113 §6.9.2).
func (c *conn) acknowledged() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.acked {
		return
	}
	c.acked = true
	k := &c.control
	k.mu.Lock()
	defer k.mu.Unlock()
	gap := max(0, floorWindow-int64(c.cfg.StartWindow))
	for _, s := range c.streams {
		s.recvWindow -= gap
		s.window -= gap
		c.announce(s)
	}
}

// connGrant says how much credit to announce for the connection now, and books it. Above the budget the peer gets no
// more than the protocol's smallest window. control.mu is held.
func (c *conn) connGrant() uint32 {
	r := &c.control.recv
	full := int64(c.cfg.ConnWindow)
	if !due(r.credit, r.window, full-r.withheld) {
		return 0
	}
	if r.full < full && r.queued <= max(r.before, r.full/2) {
		r.full = min(2*r.full, full)
		c.settle()
	}
	r.before = r.queued
	n := r.credit
	if c.cfg.Budget.exceeded() {
		n = min(n, max(0, floorWindow-r.window))
	}
	r.credit -= n
	r.window += n
	return uint32(n)
}
