// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"runtime"
	"sync/atomic"
	"time"
)

// To write little to a socket costs about as much as to write 64 KiB. So whoever has sealed little lets the goroutines run
// that are about to do the same, and one write takes it all. Where that is in vain it is left out most of the time, and for a
// while where it takes long, as beside goroutines that are busy with other connections.
const (
	aloneMost   = 8  // times in vain, after which it is tried
	aloneTry    = 16 // once in so many
	companyMost = 300 * time.Microsecond
	companyRest = 10 * time.Millisecond
)

// company knows whether others add to what one goroutine is about to write.
type company struct {
	alone atomic.Uint32 // times in vain
	until atomic.Int64  // a time.Duration since loaded: the end of the rest
}

// loaded is where monotonic time begins.
var loaded = time.Now()

// likely reports whether it is worth letting others run.
func (c *company) likely(now time.Duration) bool {
	if n := c.alone.Load(); n >= aloneMost && n%aloneTry != 0 {
		c.alone.Add(1)
		return false
	}
	return int64(now) >= c.until.Load()
}

// learn notes whether others came while they could, and how long that took until now.
func (c *company) learn(came bool, took, now time.Duration) {
	if came {
		c.alone.Store(0)
	} else {
		c.alone.Add(1)
	}
	if took > companyMost {
		c.until.Store(int64(now + companyRest))
	}
}

// gather lets others add to what was published, if that is little.
func (r *recordConn) gather() {
	little := r.unflushed.Load()
	if little == 0 || little > outSmall {
		return
	}
	began := time.Since(loaded)
	if !r.company.likely(began) {
		return
	}
	runtime.Gosched()
	now := time.Since(loaded)
	r.company.learn(r.unflushed.Load() != little, now-began, now)
}
