// SPDX-License-Identifier: Apache-2.0

package hbone

import "sync"

const (
	frameHeaderLen = 9
	recordPayload  = 16 << 10 // largest TLS record payload

	// A DATA frame of at most chunkMax payload bytes and its header are 60 KiB. That and the records around it are one TCP
	// segment before the kernel splits it, whatever the path's MTU: such a segment takes a whole number of packets in
	// less than 64 KiB, 62 636 bytes of 9 000. A few bytes more would be a second one each time: measured, a fifth more CPU
	// per byte. Fewer bytes cost more per byte, as most of the cost is the kernel's for each segment.
	frameMax = 60 << 10
	chunkMax = frameMax - frameHeaderLen
	// An application is read for one such frame at a time; seal needs the byte behind it.
	appBufSize = frameMax + 1
	// A frame and one record more, so that a frame that starts anywhere can be gathered whole.
	plainBufSize = 5 * recordPayload

	cipherSmall = 64 << 10
	cipherLarge = 256 << 10 // once a small one was filled by one read

	outSmall = 4 << 10 // control frames and small messages
	outLarge = 64 << 10

	queueChunk = 16 << 10
)

// chunkSizes are what links of queues come in: a peer that has many streams hold a little each pays for what it sent, and
// not for whole chunks. Most of what comes before the application is connected fits in the first.
var chunkSizes = [...]int{512, 2 << 10, 6 << 10, queueChunk}

// pool is a typed sync.Pool.
type pool[T any] struct{ p sync.Pool }

func (p *pool[T]) get() *T {
	if v, ok := p.p.Get().(*T); ok {
		return v
	}
	return new(T)
}

func (p *pool[T]) put(v *T) { p.p.Put(v) }

var (
	smallCiphers pool[[cipherSmall]byte]
	largeCiphers pool[[cipherLarge]byte]
	plainBufs    pool[[plainBufSize + recordCipherMax - recordPayload]byte] // room for a record's padding
	partBufs     pool[[recordHeaderLen + recordCipherMax]byte]
	appBufs      pool[[appBufSize]byte]
	chunks       [len(chunkSizes)]pool[chunk]
	smallOuts    pool[outBuf]
	largeOuts    pool[outBuf]
)

// cipherBuf takes what one read of a connection yields.
func cipherBuf(large bool) []byte {
	if large {
		return largeCiphers.get()[:]
	}
	return smallCiphers.get()[:]
}

func freeCipherBuf(b []byte) {
	if len(b) == cipherLarge {
		largeCiphers.put((*[cipherLarge]byte)(b))
		return
	}
	smallCiphers.put((*[cipherSmall]byte)(b))
}

// outBuf holds records that wait to be written.
type outBuf struct {
	next *outBuf
	b    []byte
}

// newOutBuf returns one for size bytes.
func newOutBuf(size int) *outBuf {
	p, most := &largeOuts, max(outLarge, size)
	if size <= outSmall {
		p, most = &smallOuts, outSmall
	}
	o := p.get()
	if cap(o.b) < most {
		o.b = make([]byte, 0, most)
	}
	o.next, o.b = nil, o.b[:0]
	return o
}

// room is what it takes without being moved.
func (o *outBuf) room() int { return cap(o.b) - len(o.b) }

// grow returns a buffer with the same bytes and room for size more.
func (o *outBuf) grow(size int) *outBuf {
	large := newOutBuf(len(o.b) + size)
	large.b = append(large.b, o.b...)
	o.free()
	return large
}

func (o *outBuf) free() {
	switch c := cap(o.b); {
	case c == outSmall:
		smallOuts.put(o)
	case c <= outLarge:
		largeOuts.put(o)
	}
}

// chunk is one link of a queue: bytes r to w wait.
type chunk struct {
	next *chunk
	r, w int
	buf  []byte // of one of chunkSizes
}

// newChunk returns an empty chunk for n bytes, or for the first of them.
func newChunk(n int) *chunk {
	class := chunkClass(n)
	c := chunks[class].get()
	if c.buf == nil {
		c.buf = make([]byte, chunkSizes[class])
	}
	c.next, c.r, c.w = nil, 0, 0
	return c
}

// chunkClass is the least of chunkSizes that n bytes fit in, or the largest.
func chunkClass(n int) int {
	for i, size := range chunkSizes {
		if n <= size {
			return i
		}
	}
	return len(chunkSizes) - 1
}

func (c *chunk) free() { chunks[chunkClass(len(c.buf))].put(c) }

// queue holds bytes that the kernel did not take yet, in order. The zero value is empty.
type queue struct {
	head, tail *chunk
	size       int
}

func (q *queue) append(b []byte) {
	q.size += len(b)
	for len(b) > 0 {
		if q.tail == nil || q.tail.w == len(q.tail.buf) {
			c := newChunk(q.size)
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
	c.free()
}

// clear drops everything and reports how much that was.
func (q *queue) clear() int {
	n := q.size
	for c := q.head; c != nil; {
		next := c.next
		c.free()
		c = next
	}
	*q = queue{}
	return n
}
