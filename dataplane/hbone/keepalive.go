// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"time"

	"golang.org/x/net/http2"
)

// tick sends the PING that is due, fails a connection whose peer did not answer, and ends an idle one.
func (c *conn) tick() {
	now := time.Now()
	c.mu.Lock()
	if c.failed || c.endSaid {
		c.mu.Unlock()
		return
	}
	late := c.isLate(now)
	deaf := !c.acked && now.Sub(c.since) >= c.cfg.PingTimeout
	idle := c.idleFor > 0 && c.active == 0 && !now.Before(c.idleUntil())
	ping := c.pingSent.IsZero() && !now.Before(c.pingAt)
	if ping {
		c.pingSent, c.pingLooked, c.pingAt = now, now, now.Add(c.cfg.PingInterval)
	}
	if idle {
		c.draining = true // from here on nobody opens a stream
	}
	c.timer.Reset(c.nextTick(now))
	c.mu.Unlock()
	switch {
	case late:
		c.fail(connErr(http2.ErrCodeNo, "peer answered no PING for %v", c.cfg.PingTimeout))
	case deaf: // RFC 9113 §6.5.3
		c.fail(connErr(http2.ErrCodeSettingsTimeout, "peer did not acknowledge SETTINGS for %v", c.cfg.PingTimeout))
	case idle:
		c.finish()
		c.owner.changed(c)
	case ping:
		c.postPing(false, keepPing)
		c.kick()
	}
}

// isLate reports whether the peer owes the answer to a PING for PingTimeout, and nothing moved either way in the second half of
// that: on a slow path PING and answer wait behind other bytes, and a peer that takes or sends those is there. c.mu is held.
func (c *conn) isLate(now time.Time) bool {
	if c.pingSent.IsZero() || now.Sub(c.pingLooked) < c.cfg.PingTimeout/2 {
		return false
	}
	moved := moved(c.rec.rc)
	still := moved == c.pingMoved
	c.pingLooked, c.pingMoved = now, moved
	return still && now.Sub(c.pingSent) >= c.cfg.PingTimeout
}

// firstUse is how long a connection is kept at least for the stream that it was made for: on a busy machine that comes
// later than a short IdleFor ends.
const firstUse = time.Second

// idleUntil is when a connection without streams ends. c.mu is held.
func (c *conn) idleUntil() time.Time {
	if c.client && c.nextID == firstID {
		return c.idleSince.Add(max(c.idleFor, firstUse))
	}
	return c.idleSince.Add(c.idleFor)
}

// nextTick is how long tick may sleep. c.mu is held.
func (c *conn) nextTick(now time.Time) time.Duration {
	next := c.pingAt
	if !c.pingSent.IsZero() {
		next = c.pingLooked.Add(c.cfg.PingTimeout / 2)
	}
	if t := c.since.Add(c.cfg.PingTimeout); !c.acked && t.Before(next) {
		next = t
	}
	if c.idleFor > 0 && c.active == 0 {
		if t := c.idleUntil(); t.Before(next) {
			next = t
		}
	}
	return max(next.Sub(now), time.Millisecond)
}

// pong handles the answer to a PING.
func (c *conn) pong(data uint64) {
	c.mu.Lock()
	c.pingSent = time.Time{}
	if next := c.nextTick(time.Now()); !c.failed {
		c.timer.Reset(next)
	}
	second := data == drainPing && c.goAwaySent && c.goAwayLast == lastAny
	if second {
		c.goAwayLast, c.draining = c.highestID, true
	}
	last := c.goAwayLast
	c.mu.Unlock()
	if second {
		c.postGoAway(last, http2.ErrCodeNo)
		c.owner.changed(c)
	}
}

// drain ends the connection with its last stream. A server announces that in two steps (RFC 9113 §6.8): first without
// a limit, and once the peer has certainly seen that, with the last stream that it will answer.
func (c *conn) drain() {
	c.mu.Lock()
	if c.goAwaySent || c.failed {
		c.mu.Unlock()
		return
	}
	c.goAwaySent = true
	if c.client {
		c.draining = true
		c.mu.Unlock()
		c.owner.changed(c)
		return
	}
	if c.pingSent.IsZero() {
		c.pingSent = time.Now()
		c.pingLooked = c.pingSent
	}
	c.mu.Unlock()
	c.postGoAway(lastAny, http2.ErrCodeNo)
	c.postPing(false, drainPing)
	c.kick()
}
