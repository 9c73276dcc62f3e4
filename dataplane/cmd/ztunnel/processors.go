// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"runtime"
	"syscall"
	"time"
)

// Messages and new connections are pieces of work of a few µs. With several processors Go wakes a thread for nearly each of them,
// which looks for work, is switched to and from, and most often finds that another has done it: a third of a proxy's CPU. So the
// process uses as few processors as such work fits on. Bulk is another matter: ciphers and copies keep as many busy as there are.
const (
	fullFrom  = 0.7         // how busy a processor is, on average, when more are needed
	bulkFrom  = 32 << 20    // bytes in a second that are bulk
	calmFor   = time.Second // for how long fewer must have sufficed
	looksBusy = 50 * time.Millisecond
	looksIdle = 250 * time.Millisecond
	idleBelow = 0.02 // of one processor
)

// done is what the process has done so far.
type done struct {
	cpu  time.Duration
	bulk uint64 // bytes that went through tunnels in large pieces
}

// processors decides how many processors the process uses.
type processors struct {
	most int // set once
	n    int
	calm time.Duration // for how long fewer would have sufficed
}

func newProcessors(most int) *processors { return &processors{most: most, n: 1} }

// look hears what was done in the time since it was last asked, and returns how many processors to use.
func (p *processors) look(did done, took time.Duration) int {
	load, fewer := did.cpu.Seconds()/took.Seconds(), p.n/2
	switch {
	case float64(did.bulk) > bulkFrom*took.Seconds():
		p.n, p.calm = p.most, 0
	case load > fullFrom*float64(p.n):
		p.n, p.calm = min(2*p.n, p.most), 0
	case fewer == 0 || load > fullFrom*float64(fewer):
		p.calm = 0
	default:
		if p.calm += took; p.calm >= calmFor {
			p.n, p.calm = fewer, 0
		}
	}
	return p.n
}

// run has the process use as many as it needs, until the end of ctx, and then as many as it may. bulk is as in done.
func (p *processors) run(ctx context.Context, bulk func() uint64) {
	if p.most == 1 {
		return
	}
	defer runtime.GOMAXPROCS(p.most)
	runtime.GOMAXPROCS(p.n)
	t := time.NewTimer(looksBusy)
	defer t.Stop()
	for at, seen := time.Now(), (done{cpuTime(), bulk()}); ; {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now, all := time.Now(), done{cpuTime(), bulk()}
		did, took, before := done{all.cpu - seen.cpu, all.bulk - seen.bulk}, now.Sub(at), p.n
		if p.look(did, took) != before {
			runtime.GOMAXPROCS(p.n)
		}
		next := looksBusy
		if did.cpu.Seconds() < idleBelow*took.Seconds() {
			next = looksIdle
		}
		at, seen = now, all
		t.Reset(next)
	}
}

// cpuTime is what the process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // fails only for bad arguments
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
