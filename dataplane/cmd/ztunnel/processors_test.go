// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"runtime"
	"testing"
	"time"
)

func TestProcessorsFollowTheWork(t *testing.T) {
	type looks struct {
		load  float64 // in processors
		bulk  uint64  // bytes in a second
		times int     // of 50 ms
		want  int
	}
	for name, c := range map[string]struct {
		most  int
		looks []looks
	}{
		"little work stays on one":         {4, []looks{{0.6, 0, 100, 1}}},
		"more than fits takes more":        {4, []looks{{0.8, 0, 1, 2}, {1.5, 0, 1, 4}}},
		"no more than there may be":        {3, []looks{{1, 0, 1, 2}, {2, 0, 1, 3}, {3, 0, 10, 3}}},
		"one is one":                       {1, []looks{{1, 0, 10, 1}}},
		"bulk takes all at once":           {8, []looks{{0.3, 100 << 20, 1, 8}}},
		"a trickle in large pieces is not": {8, []looks{{0.3, 1 << 20, 10, 1}}},
		"fewer only after a while":         {2, []looks{{0.8, 0, 1, 2}, {0.4, 0, 19, 2}, {0.4, 0, 1, 1}}},
		"the while begins anew":            {2, []looks{{0.8, 0, 1, 2}, {0.4, 0, 19, 2}, {0.9, 0, 1, 2}, {0.4, 0, 19, 2}, {0.4, 0, 1, 1}}},
		"bulk that pauses keeps them":      {2, []looks{{0.5, 100 << 20, 1, 2}, {0.1, 0, 10, 2}, {0.5, 100 << 20, 1, 2}, {0.1, 0, 19, 2}}},
		"step by step":                     {4, []looks{{0.5, 100 << 20, 1, 4}, {0, 0, 20, 2}, {0, 0, 20, 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			const took = 50 * time.Millisecond
			p := newProcessors(c.most)
			for i, l := range c.looks {
				got := 0
				for range l.times {
					got = p.look(done{time.Duration(l.load * float64(took)), uint64(float64(l.bulk) * took.Seconds())}, took)
				}
				if got != l.want {
					t.Fatalf("after step %d (%+v): %d processors", i, l, got)
				}
			}
		})
	}
}

func TestProcessorsAreGivenBackAtTheEnd(t *testing.T) {
	before := runtime.GOMAXPROCS(2)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	ctx, stop := context.WithCancel(t.Context())
	var asked int
	newProcessors(2).run(ctx, func() uint64 {
		if asked++; asked == 2 {
			if n := runtime.GOMAXPROCS(0); n != 1 {
				t.Errorf("%d processors without work", n)
			}
			stop()
		}
		return 0
	})
	if n := runtime.GOMAXPROCS(0); n != 2 {
		t.Errorf("%d processors after the end", n)
	}
}
