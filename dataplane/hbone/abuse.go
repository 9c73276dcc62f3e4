// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// A peer may do some things that cost us more than it, or that no honest peer does often. Each kind has an allowance
// that fills by the second; who uses it up loses the connection (ENHANCE_YOUR_CALM, RFC 9113 §10.5). All are per
// connection and far above what peers need: a proxy that opens 10 000 tunnels per second stays below every one.
type abuse struct {
	// noise counts frames that carry nothing: PING, SETTINGS, PRIORITY, unknown ones, DATA that is empty or padding for
	// the most part, RST_STREAM for streams that are gone, 1xx responses. A stream that is opened earns some, as its end may cross ours on the wire.
	noise allowance
	// faults counts streams that we had to reset because of what the peer sent on them (CVE-2025-8671).
	faults allowance
	// abandoned counts requests that the peer reset before they were answered (CVE-2023-44487), or sent in excess.
	abandoned allowance
	// updates counts WINDOW_UPDATE frames; bytes that we send earn some.
	updates allowance

	sent atomic.Int64 // bytes since updates ran short the last time

	// refusal is when the next refusal may be answered, in nanoseconds since the connection's start. A peer may need
	// many answers of that kind (a policy changed), so they are not counted but paced, and keep their turn meanwhile: who
	// does not wait for them runs into the limit on streams.
	refusal atomic.Int64
}

func newAbuse(now time.Time) abuse {
	return abuse{
		noise:     newAllowance(300, 100, now),
		faults:    newAllowance(20, 5, now),
		abandoned: newAllowance(200, 100, now),
		updates:   newAllowance(1000, 100, now),
	}
}

// What things cost or earn.
const (
	costSettings = 4   // every stream may have to be looked at
	costGoAway   = 50  // an honest peer sends two
	costShrink   = 2   // is one noise, for so many streams whose window SETTINGS takes away
	mostShrink   = 100 // for one SETTINGS, below what noise allows at once
	costHeaders  = 5   // beyond the limit, all of which were decoded
	earnOpen     = 4
	// One WINDOW_UPDATE for this many bytes is what the busiest of known peers send, for stream and connection each.
	bytesPerUpdate = 2 << 10
	// settingsMax bounds the entries of one SETTINGS frame, each of which may touch every stream.
	settingsMax = 64
	// Refusals of one connection keep this distance once more of them have come at once.
	refusalGap   = time.Millisecond
	refusalBurst = 50 * refusalGap
)

// allowance is a token bucket that looks at the clock only when it is empty. Owned by the read loop.
type allowance struct {
	left, most, perSecond int64
	filled                time.Time
}

func newAllowance(most, perSecond int64, now time.Time) allowance {
	return allowance{left: most, most: most, perSecond: perSecond, filled: now}
}

// spend takes n and reports whether they were there.
func (a *allowance) spend(n int64) bool {
	if a.left -= n; a.left >= 0 {
		return true
	}
	now := time.Now()
	a.earn(int64(now.Sub(a.filled).Seconds() * float64(a.perSecond)))
	a.filled = now
	return a.left >= 0
}

func (a *allowance) earn(n int64) { a.left = min(a.left+n, a.most) }

// noise books n for a frame that carries nothing.
func (c *conn) noise(n int64, kind http2.FrameType) error {
	if c.abuse.noise.spend(n) {
		return nil
	}
	return connErr(http2.ErrCodeEnhanceYourCalm, "too many frames that carry nothing, the last a %v", kind)
}

// shrunk books SETTINGS that took window away from n streams. Peers let windows grow while there are streams, but seldom
// shrink them: each time, what was on its way for all of them stops, to go on all at once when window comes back.
// Once is never too often, however many streams there are.
func (c *conn) shrunk(n int) error {
	return c.noise(int64(min(n/costShrink, mostShrink)), http2.FrameSettings)
}

// fault books a stream that has to be reset for what the peer sent.
func (c *conn) fault(code Code) error { return c.faultOf(1, code) }

// faultOf is fault for one that cost as much work as n.
func (c *conn) faultOf(n int64, code Code) error {
	if c.abuse.faults.spend(n) {
		return nil
	}
	return connErr(http2.ErrCodeEnhanceYourCalm, "too many streams broken by the peer, the last with %v", code)
}

// failFor resets a stream for what the peer sent.
func (c *conn) failFor(s *stream, code Code) error {
	s.fail(code, &ResetError{Code: code})
	return c.fault(code)
}

// abandoned books a request that will not be answered because of the peer.
func (c *conn) abandoned() error {
	if c.abuse.abandoned.spend(1) {
		return nil
	}
	return connErr(http2.ErrCodeEnhanceYourCalm, "too many requests given up or in excess")
}

// updated books a WINDOW_UPDATE.
func (c *conn) updated() error {
	a := &c.abuse
	if a.updates.left == 0 {
		a.updates.earn(a.sent.Swap(0) / bytesPerUpdate)
	}
	if a.updates.spend(1) {
		return nil
	}
	return connErr(http2.ErrCodeEnhanceYourCalm, "too many WINDOW_UPDATE frames for what was sent")
}

// opened books a new stream.
func (c *conn) opened() {
	c.abuse.noise.earn(earnOpen)
	c.abuse.updates.earn(earnOpen)
}

// pace waits until s, which is to be refused, may be answered, or has ended.
func (s *stream) pace() {
	c := s.c
	now := int64(time.Since(c.since))
	at := int64(0)
	for {
		last := c.abuse.refusal.Load()
		at = max(last+int64(refusalGap), now-int64(refusalBurst))
		if c.abuse.refusal.CompareAndSwap(last, at) {
			break
		}
	}
	if at <= now {
		return
	}
	t := time.AfterFunc(time.Duration(at-now), s.signal)
	defer t.Stop()
	for int64(time.Since(c.since)) < at && !s.isDead() {
		<-s.wake
	}
}
