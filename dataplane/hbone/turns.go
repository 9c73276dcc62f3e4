// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"slices"
	"sync"
	"time"
)

// turns lets so many requests of one connection be under way at a time: from the handler's start until the application's
// first byte, or the end. The others wait in the order in which they came. A peer may ask for all its streams at once, on
// several connections, and others' calls would wait for all of that work, here and in the application, which meets it
// first as connections to accept. What is answered loses nothing by that; a connection whose tunnels end well may have more
// and more under way. Applications need not answer, so while requests wait one more may go every turnGap, for the one
// that has been under way for longest.
type turns struct {
	mu      sync.Mutex
	more    int        // than turnsFirst
	running []*Inbound // those that count, the oldest first
	waiting []*Inbound
	timer   *time.Timer
	ticking bool
}

const (
	turnsFirst = 16
	turnsMore  = 256
	turnGap    = 4 * time.Millisecond
)

// enter calls in.start, now or when it is its turn.
func (t *turns) enter(in *Inbound) {
	t.mu.Lock()
	if len(t.waiting) == 0 && t.free() > 0 {
		t.running = append(t.running, in)
		t.mu.Unlock()
		in.start()
		return
	}
	t.waiting = append(t.waiting, in)
	if !t.ticking {
		t.tick()
	}
	t.mu.Unlock()
}

// leave says that in is no longer under way, or ended well.
func (t *turns) leave(in *Inbound, well bool) {
	t.mu.Lock()
	if i := slices.Index(t.running, in); i >= 0 {
		t.running = slices.Delete(t.running, i, i+1)
	}
	if well && t.more < turnsMore {
		t.more++
	}
	t.startWaiting(t.free())
}

func (t *turns) free() int { return turnsFirst + t.more - len(t.running) }

func (t *turns) tick() {
	t.ticking = true
	if t.timer == nil {
		t.timer = time.AfterFunc(turnGap, t.pass)
		return
	}
	t.timer.Reset(turnGap)
}

// pass lets one more go.
func (t *turns) pass() {
	t.mu.Lock()
	if t.ticking = len(t.waiting) > 0; !t.ticking {
		t.mu.Unlock()
		return
	}
	if t.free() <= 0 {
		t.running = slices.Delete(t.running, 0, 1)
	}
	t.tick()
	t.startWaiting(1)
}

// startWaiting starts up to n. t.mu is held, and released.
func (t *turns) startWaiting(n int) {
	n = max(0, min(n, len(t.waiting)))
	next := slices.Clone(t.waiting[:n])
	t.waiting = slices.Delete(t.waiting, 0, n)
	t.running = append(t.running, next...)
	t.mu.Unlock()
	for _, in := range next {
		in.start()
	}
}
