// SPDX-License-Identifier: Apache-2.0

package hbone

import "sync"

const (
	frameHeaderLen = 9
	recordPayload  = 16 << 10 // largest TLS record payload

	cipherBufSize = 256 << 10
	// A chunk of at most chunkMax payload bytes and its frame header fill four TLS records exactly.
	appBufSize = 4 * recordPayload
	chunkMax   = appBufSize - frameHeaderLen
	// A chunk's worth and one record more, so that a frame that starts anywhere can be gathered whole.
	plainBufSize  = appBufSize + recordPayload
	queueChunk    = 16 << 10
	outBufSize    = 96 << 10
	outBufKeepMax = 512 << 10
)

// pool is a typed sync.Pool of fixed-size buffers.
type pool[T any] struct{ p sync.Pool }

func (p *pool[T]) get() *T {
	if v, ok := p.p.Get().(*T); ok {
		return v
	}
	return new(T)
}

func (p *pool[T]) put(v *T) { p.p.Put(v) }

var (
	cipherBufs pool[[cipherBufSize]byte]
	plainBufs  pool[[plainBufSize]byte]
	appBufs    pool[[appBufSize]byte]
	chunks     pool[chunk]
	outBufs    pool[outBuf]
)

// outBuf collects TLS records that wait for the flusher.
type outBuf struct{ b []byte }

func newOutBuf() *outBuf {
	o := outBufs.get()
	if o.b == nil {
		o.b = make([]byte, 0, outBufSize)
	}
	return o
}

func (o *outBuf) free() {
	if cap(o.b) > outBufKeepMax {
		return
	}
	o.b = o.b[:0]
	outBufs.put(o)
}

// chunk is one link of a queue: bytes r to w wait.
type chunk struct {
	next *chunk
	r, w int
	buf  [queueChunk]byte
}

// queue holds bytes that the kernel did not take yet, in order. The zero value is empty.
type queue struct {
	head, tail *chunk
	size       int
}

func (q *queue) append(b []byte) {
	q.size += len(b)
	for len(b) > 0 {
		if q.tail == nil || q.tail.w == queueChunk {
			c := chunks.get()
			c.next, c.r, c.w = nil, 0, 0
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		n := copy(q.tail.buf[q.tail.w:], b)
		q.tail.w += n
		b = b[n:]
	}
}

// front is the first run of bytes; it stays valid while others append, until consume or clear.
func (q *queue) front() []byte {
	if q.head == nil {
		return nil
	}
	return q.head.buf[q.head.r:q.head.w]
}

// consume drops the first n bytes, which must be within front.
func (q *queue) consume(n int) {
	q.size -= n
	c := q.head
	c.r += n
	if c.r < c.w {
		return
	}
	q.head = c.next
	if q.head == nil {
		q.tail = nil
	}
	chunks.put(c)
}

// clear drops everything and reports how much that was.
func (q *queue) clear() int {
	n := q.size
	for c := q.head; c != nil; {
		next := c.next
		chunks.put(c)
		c = next
	}
	*q = queue{}
	return n
}
