// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// turns lets so many requests of one connection be under way at a time: from the handler's start until the application's
// first byte, or the end. Fewer yet may be opening, until they are answered, as that is work all the time. The others wait
// in the order in which they came. A peer may ask for all its streams at once, on several connections, and others' calls
// would wait for all of that work, here and in the application, which meets it first as connections to accept. What is
// answered loses nothing by that; a connection whose tunnels end well may have more and more under way. Applications need
// not answer, so while requests wait one more may go every turnGap, for the one that has been under way for longest; and
// one that ended unanswered is made up for after endGap, as a peer may have as many of those as it likes. The connections
// of one client share these turns, and what may be under way of each while requests wait.
type turns struct {
	guard *Guard // nil: the connection is its client's only one
	addr  netip.Addr

	mu      sync.Mutex
	more    int        // than turnsFirst and turnsOpening
	opening int        // of those running
	running []*Inbound // those that count, the oldest first
	waiting []*Inbound
	timer   *time.Timer
	ticking bool
}

const (
	turnsFirst   = 16
	turnsOpening = 4
	turnsMore    = 256
	turnGap      = 4 * time.Millisecond
	endGap       = 2 * time.Millisecond
)

// outcome is why a request is no longer under way.
type outcome int

const (
	replied outcome = iota // by the application
	endedWell
	endedBadly
)

// enter calls in.start, now or when it is its turn.
func (t *turns) enter(in *Inbound) {
	t.mu.Lock()
	if len(t.waiting) == 0 && t.free() > 0 {
		t.count(in)
		t.mu.Unlock()
		in.start()
		return
	}
	if t.waiting = append(t.waiting, in); len(t.waiting) == 1 {
		t.crowd(1)
	}
	if !t.ticking {
		t.tick()
	}
	t.mu.Unlock()
}

// count notes that in is under way, and opening. t.mu is held.
func (t *turns) count(in *Inbound) {
	t.running = append(t.running, in)
	in.opening = true
	t.opening++
}

// opened says that in is not opening any more. t.mu is held.
func (t *turns) opened(in *Inbound) {
	if in.opening {
		in.opening = false
		t.opening--
	}
}

// answered says that in is open.
func (t *turns) answered(in *Inbound) {
	t.mu.Lock()
	t.opened(in)
	t.startWaiting(t.free())
}

// leave says that in is no longer under way, or that it ended well, which may come after.
func (t *turns) leave(in *Inbound, why outcome) {
	t.mu.Lock()
	t.opened(in)
	if i := slices.Index(t.running, in); i >= 0 {
		t.running = slices.Delete(t.running, i, i+1)
	}
	if why == endedWell && t.more < turnsMore {
		t.more++
	}
	n := t.free()
	if why == endedBadly {
		n = 0 // pass has it
	}
	t.startWaiting(n)
}

// crowd notes that the connection has become one on which requests wait, or is none any more.
func (t *turns) crowd(n int) {
	if t.guard != nil {
		t.guard.crowd(t.addr, n)
	}
}

// limits is how many may be under way, and of those opening.
func (t *turns) limits() (running, opening int) {
	crowd := 1
	if t.guard != nil {
		crowd = max(1, t.guard.crowded(t.addr))
	}
	return max(1, turnsFirst/crowd) + t.more, max(1, turnsOpening/crowd) + t.more
}

// free is how many more may be under way.
func (t *turns) free() int {
	running, opening := t.limits()
	return min(running-len(t.running), opening-t.opening)
}

func (t *turns) tick() {
	t.ticking = true
	d := turnGap
	if t.free() > 0 {
		d = endGap
	}
	if t.guard != nil {
		d = t.guard.turn(t.addr, toOpen, d)
	}
	if t.timer == nil {
		t.timer = time.AfterFunc(d, t.pass)
		return
	}
	t.timer.Reset(d)
}

// pass lets one more go.
func (t *turns) pass() {
	t.mu.Lock()
	if t.ticking = len(t.waiting) > 0; !t.ticking {
		t.mu.Unlock()
		return
	}
	running, opening := t.limits()
	if len(t.running) >= running {
		t.opened(t.running[0])
		t.running = slices.Delete(t.running, 0, 1)
	}
	if t.opening >= opening {
		t.opened(t.running[slices.IndexFunc(t.running, func(in *Inbound) bool { return in.opening })])
	}
	t.startWaiting(1)
	t.mu.Lock()
	t.tick() // as what there is room for comes sooner
	t.mu.Unlock()
}

// startWaiting starts up to n. t.mu is held, and released.
func (t *turns) startWaiting(n int) {
	n = max(0, min(n, len(t.waiting)))
	next := slices.Clone(t.waiting[:n])
	if t.waiting = slices.Delete(t.waiting, 0, n); n > 0 && len(t.waiting) == 0 {
		t.crowd(-1)
	}
	for _, in := range next {
		t.count(in)
	}
	t.mu.Unlock()
	for _, in := range next {
		in.start()
	}
}
