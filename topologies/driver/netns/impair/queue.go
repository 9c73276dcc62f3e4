// SPDX-License-Identifier: Apache-2.0

package impair

import (
	"container/heap"
	"time"
)

// packet is on its way.
type packet struct {
	due  time.Time
	nth  uint64 // keeps the order of those that are due at the same time
	data []byte
}

type packets []packet

func (p packets) Len() int      { return len(p) }
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p packets) Less(i, j int) bool {
	if p[i].due.Equal(p[j].due) {
		return p[i].nth < p[j].nth
	}
	return p[i].due.Before(p[j].due)
}

// Push implements heap.Interface.
func (p *packets) Push(x any) { *p = append(*p, x.(packet)) }

// Pop implements heap.Interface.
func (p *packets) Pop() any {
	old := *p
	last := old[len(old)-1]
	old[len(old)-1] = packet{}
	*p = old[:len(old)-1]
	return last
}

// maxQueued is a second of 128 Mbit/s: more than that, a real link would not hold either.
const maxQueued = 16 << 20

// queue holds packets until they are due.
type queue struct {
	list  packets
	bytes int
	nth   uint64
}

// put copies data; false means that there is no room.
func (q *queue) put(data []byte, due time.Time) bool {
	if q.bytes+len(data) > maxQueued {
		return false
	}
	q.nth++
	q.bytes += len(data)
	heap.Push(&q.list, packet{due: due, nth: q.nth, data: append([]byte(nil), data...)})
	return true
}

// next is when the first packet is due; zero if there is none.
func (q *queue) next() time.Time {
	if len(q.list) == 0 {
		return time.Time{}
	}
	return q.list[0].due
}

// take removes the first packet that is due by now.
func (q *queue) take(now time.Time) ([]byte, bool) {
	if len(q.list) == 0 || q.list[0].due.After(now) {
		return nil, false
	}
	p := heap.Pop(&q.list).(packet)
	q.bytes -= len(p.data)
	return p.data, true
}
