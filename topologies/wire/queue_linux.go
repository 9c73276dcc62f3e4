// SPDX-License-Identifier: Apache-2.0

package wire

import "sync"

// maxQueued is how many bytes may wait to be written. Beyond that the reader waits too, the ring fills, and the kernel counts drops.
const maxQueued = 512 << 20

// queue carries frames from the half that reads the ring to the half that writes, which may be as slow as a pipe.
type queue struct {
	mu    sync.Mutex
	moved *sync.Cond // something changed; guards with mu

	frames    []frame
	bytes     int
	ended     bool // no more will come
	abandoned bool // no more will be taken
}

func newQueue() *queue {
	q := &queue{}
	q.moved = sync.NewCond(&q.mu)
	return q
}

func (q *queue) add(frames []frame, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes >= maxQueued && !q.abandoned {
		q.moved.Wait()
	}
	q.frames = append(q.frames, frames...)
	q.bytes += bytes
	q.moved.Signal()
}

// take waits for frames. ended says that these are the last.
func (q *queue) take() (frames []frame, ended bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.frames) == 0 && !q.ended {
		q.moved.Wait()
	}
	frames = q.frames
	q.frames, q.bytes = nil, 0
	q.moved.Signal()
	return frames, q.ended
}

func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.moved.Signal()
}

// abandon lets the reader go on when nobody writes any more.
func (q *queue) abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.abandoned = true
	q.moved.Signal()
}
