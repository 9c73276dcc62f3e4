// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"
)

// Guard keeps clients that misbehave from keeping a process busy with new connections. Each address may have so many
// TLS handshakes under way, and the rest wait their turn, holding no TLS state. One whose connections had to be ended for
// what it sent, or did not come to carry HTTP/2, waits before its next handshake, the longer the more of them there were
// of late, and from the arrival of the connection on, so that time in a list counts. Requests of one address that others leave no room
// for take turns, over all of its connections. Nobody is turned away, as an address may stand for many (a gateway).
type Guard struct {
	mu      sync.Mutex
	callers map[netip.Addr]*caller
}

const (
	handshakesPerAddr = 32
	// An address may offend so often before it waits; each further offence costs so much, up to a limit, and is forgotten
	// in so much time.
	offencesFree   = 4
	offenceWait    = 100 * time.Millisecond
	offenceWaitMax = 2 * time.Second
	offenceMemory  = 10 * time.Second
	// admitLeft is the part of a handshake's time that must be left for it once its turn has come: a tenth.
	admitLeft = 10
	// callersMax bounds what is remembered; beyond it nobody new is.
	callersMax = 4096
)

// caller is what is known of an address.
type caller struct {
	slots    chan struct{}
	users    int     // that hold or want a slot
	offences float64 // fading, as of seen
	seen     time.Time
	turns    [lanes]time.Time // the last that was given of each
	crowded  int              // connections on which requests wait
}

// NewGuard returns a guard that knows nobody.
func NewGuard() *Guard { return &Guard{callers: make(map[netip.Addr]*caller)} }

// processGuard serves every Config that names none.
var processGuard = NewGuard()

// admit waits until a client that arrived at some time may begin its handshake; leave ends it. One that nearly all of the time until
// ctx's deadline has passed for is not begun: most likely that would be work for nothing, of many that came at once and have waited
// as long.
func (g *Guard) admit(ctx context.Context, a netip.Addr, arrived time.Time) (leave func(offence bool), err error) {
	now := time.Now()
	g.mu.Lock()
	c := g.caller(a, now)
	c.users++
	wait := max(0, c.wait()-now.Sub(arrived)) // whatever it waited for until now
	g.mu.Unlock()
	held := false
	leave = func(offence bool) {
		if held {
			<-c.slots
		}
		g.mu.Lock()
		c.users--
		if offence {
			c.fade(time.Now())
			c.offences++
		}
		g.mu.Unlock()
	}
	if err = sleep(ctx, wait); err == nil {
		select {
		case c.slots <- struct{}{}:
			held = true
			err = g.pace(ctx, a, toShake, shakeGap)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if end, bounded := ctx.Deadline(); err == nil && bounded && time.Until(end) < end.Sub(arrived)/admitLeft {
		err = context.DeadlineExceeded
	}
	if err == nil {
		return leave, nil
	}
	leave(false)
	return nil, fmt.Errorf("wait for %d other handshakes of %v: %w", handshakesPerAddr, a, cmp.Or(context.Cause(ctx), err))
}

// offend notes that a client's connection had to be ended for what it sent.
func (g *Guard) offend(a netip.Addr) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.caller(a, now)
	c.offences++
}

// lane is what the connections of a client share by having turns.
type lane int

const (
	toOpen  lane = iota // a request that no other makes room for (turns)
	toSend              // on a stream that is stalled (stalls)
	toShake             // hands: the beginning of a handshake
	toPart              // with a connection that came to nothing: its end
	lanes
)

// turn is how long a client waits for its next turn in a lane: so long after the last one that it had.
func (g *Guard) turn(a netip.Addr, l lane, gap time.Duration) time.Duration {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	at := &g.caller(a, now).turns[l]
	if at.Before(now) {
		*at = now
	}
	*at = at.Add(gap)
	return at.Sub(now)
}

// Of what a client's connections do in thousands as soon as they may, each is a small piece of work, but others wait for the
// processor until all of it is done. So there is a gap between those of a client, once there are more than a few together.
const (
	shakeGap = time.Millisecond
	partGap  = 250 * time.Microsecond
	inARow   = 8
)

// pace waits for a client's turn in a lane.
func (g *Guard) pace(ctx context.Context, a netip.Addr, l lane, gap time.Duration) error {
	return sleep(ctx, max(0, g.turn(a, l, gap)-inARow*gap))
}

// crowd notes that so many more connections of a's have requests that wait.
func (g *Guard) crowd(a netip.Addr, n int) {
	g.mu.Lock()
	c := g.caller(a, time.Now())
	c.crowded = max(0, c.crowded+n) // one that was not remembered at first is taken back alone
	g.mu.Unlock()
}

// crowded is how many they are.
func (g *Guard) crowded(a netip.Addr) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.callers[a]; c != nil {
		return c.crowded
	}
	return 0
}

// caller finds or makes the entry of a, faded to now. g.mu is held.
func (g *Guard) caller(a netip.Addr, now time.Time) *caller {
	if c := g.callers[a]; c != nil {
		c.fade(now)
		return c
	}
	c := &caller{slots: make(chan struct{}, handshakesPerAddr), seen: now}
	if len(g.callers) >= callersMax {
		g.forget(now)
	}
	if len(g.callers) < callersMax {
		g.callers[a] = c
	}
	return c
}

// forget drops who has long behaved. g.mu is held.
func (g *Guard) forget(now time.Time) {
	for a, c := range g.callers {
		if c.fade(now); c.users == 0 && c.crowded == 0 && c.offences < 1 {
			delete(g.callers, a)
		}
	}
}

func (c *caller) fade(now time.Time) {
	c.offences *= math.Exp(-now.Sub(c.seen).Seconds() / offenceMemory.Seconds())
	c.seen = now
}

func (c *caller) wait() time.Duration {
	if c.offences <= offencesFree {
		return 0
	}
	return min(offenceWaitMax, time.Duration((c.offences-offencesFree)*float64(offenceWait)))
}

func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
