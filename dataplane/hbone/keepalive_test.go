// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"testing"
	"time"
)

// A connection is made for a stream, which on a busy machine may come later than a short IdleFor ends: three of those in
// a row failed a call.
func TestAFreshConnectionWaitsForItsStream(t *testing.T) {
	since := time.Now()
	c := &conn{client: true, nextID: firstID, idleFor: time.Millisecond, idleSince: since}
	if got := c.idleUntil().Sub(since); got != firstUse {
		t.Errorf("unused: ends after %v, want %v", got, firstUse)
	}
	c.nextID += 2
	if got := c.idleUntil().Sub(since); got != c.idleFor {
		t.Errorf("used: ends after %v, want %v", got, c.idleFor)
	}
	c.nextID, c.idleFor = firstID, time.Minute
	if got := c.idleUntil().Sub(since); got != time.Minute {
		t.Errorf("unused, long: ends after %v, want a minute", got)
	}
}
