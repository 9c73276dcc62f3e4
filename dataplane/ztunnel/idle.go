// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"sync/atomic"
	"time"
)

// quiet is how long nothing may have happened before memory is given back; after the start, which leaves more behind than
// anything later and is followed by rest, it is less.
const (
	quiet      = 1200 * time.Millisecond
	quietStart = 700 * time.Millisecond
)

// A burst is much work without a rest. What it leaves behind does not end with it: spare connections of pools end when
// they have been idle for a while. So afterwards memory is given back once more.
const (
	burst      = 1000
	afterBurst = 20 * time.Second
)

// workCounter counts what leaves garbage behind: connections and changes of configuration.
type workCounter struct{ n atomic.Uint64 }

func (w *workCounter) add() { w.n.Add(1) }

// relax calls giveBack whenever the process has come to rest after work: after the start, after a bulk load, after a burst.
// A proxy lies idle most of its life, and the memory of its busiest minute would stay with it.
func (w *workCounter) relax(ctx context.Context, giveBack func()) error {
	wait := quietStart
	t := time.NewTimer(wait)
	defer t.Stop()
	seen, tidy := w.n.Load(), false
	rested := seen      // at the last rest
	var again time.Time // zero: not once more
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		switch now := w.n.Load(); {
		case now != seen:
			seen, tidy, again = now, false, time.Time{}
		case !tidy:
			giveBack()
			if now-rested >= burst {
				again = time.Now().Add(afterBurst)
			}
			rested, tidy, wait = now, true, quiet
		case !again.IsZero() && !time.Now().Before(again):
			giveBack()
			again = time.Time{}
		}
		t.Reset(wait)
	}
}
