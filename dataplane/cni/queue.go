// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"sync"
	"time"
)

// queue holds the pods that are to be looked at. A key is in it once, however often it is added, and is not given out while
// somebody works on it. Keys that failed come back after a wait that doubles.
type queue struct {
	min, max time.Duration // set once

	mu      sync.Mutex
	cond    sync.Cond
	waiting []string
	dirty   map[string]bool // waiting, or added while being worked on
	working map[string]bool
	failed  map[string]*failure
	closed  bool
}

type failure struct {
	wait  time.Duration
	timer *time.Timer
}

func newQueue(minWait, maxWait time.Duration) *queue {
	q := &queue{min: minWait, max: maxWait, dirty: map[string]bool{}, working: map[string]bool{}, failed: map[string]*failure{}}
	q.cond.L = &q.mu
	return q
}

func (q *queue) add(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dirty[key] || q.closed {
		return
	}
	q.dirty[key] = true
	if !q.working[key] {
		q.waiting = append(q.waiting, key)
		q.cond.Signal()
	}
}

// get waits for a key; false means that ctx ended. The caller calls done.
func (q *queue) get(ctx context.Context) (string, bool) {
	stop := context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.cond.Broadcast()
	})
	defer stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) == 0 && ctx.Err() == nil {
		q.cond.Wait()
	}
	if ctx.Err() != nil {
		return "", false
	}
	key := q.waiting[0]
	q.waiting = q.waiting[1:]
	delete(q.dirty, key)
	q.working[key] = true
	return key, true
}

func (q *queue) done(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.working, key)
	if q.dirty[key] {
		q.waiting = append(q.waiting, key)
		q.cond.Signal()
	}
}

// retry adds key after a wait, which it returns.
func (q *queue) retry(key string) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0
	}
	f := q.failed[key]
	if f == nil {
		f = &failure{wait: q.min}
		q.failed[key] = f
	} else {
		f.timer.Stop()
		f.wait = min(2*f.wait, q.max)
	}
	f.timer = time.AfterFunc(f.wait, func() { q.add(key) })
	return f.wait
}

// forget takes back that key failed.
func (q *queue) forget(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if f := q.failed[key]; f != nil {
		f.timer.Stop()
		delete(q.failed, key)
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, f := range q.failed {
		f.timer.Stop()
	}
}
