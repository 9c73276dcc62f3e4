// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"sync/atomic"
	"time"
)

// quiet is how long nothing may have happened before memory is given back. After the start and after a bulk load, which
// leave more behind than anything else and are followed by rest, it is less.
const (
	quietBulk = 700 * time.Millisecond
	quiet     = 2 * quietBulk
)

// A burst is much work without a rest. What it leaves behind does not end with it: spare connections of pools end when
// they have been idle for a while. So afterwards memory is given back once more.
const (
	burst      = 1000
	afterBurst = 20 * time.Second
)

// workCounter counts what leaves garbage behind: connections and changes of configuration.
type workCounter struct {
	n      atomic.Uint64
	loaded atomic.Bool // a bulk load was among it
}

func (w *workCounter) add() { w.n.Add(1) }

// load counts n objects that changed together.
func (w *workCounter) load(n int) {
	if n >= bulk {
		w.loaded.Store(true)
	}
	w.add()
}

// relax calls giveBack whenever the process has come to rest after work: after the start, after a bulk load, after a burst.
// A proxy lies idle most of its life, and the memory of its busiest minute would stay with it.
func (w *workCounter) relax(ctx context.Context, giveBack func()) error {
	t := time.NewTicker(quietBulk)
	defer t.Stop()
	seen := w.n.Load()
	rested := seen // at the last rest
	need, calm := 1, 0
	var again time.Time // zero: not once more
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now := w.n.Load()
		if now != seen {
			seen, again, calm, need = now, time.Time{}, 0, int(quiet/quietBulk)
			if w.loaded.Swap(false) {
				need = 1
			}
			continue
		}
		switch calm++; {
		case calm == need:
			giveBack()
			if now-rested >= burst {
				again = time.Now().Add(afterBurst)
			}
			rested = now
		case !again.IsZero() && !time.Now().Before(again):
			giveBack()
			again = time.Time{}
		}
	}
}
