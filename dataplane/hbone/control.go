// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"encoding/binary"
	"sync"

	"golang.org/x/net/http2"
)

// controlMax bounds the control frames that wait to be written. A peer that provokes more answers than it reads is
// cut, never waited for.
const controlMax = 1024

// controlFrame is a small frame in waiting.
type controlFrame struct {
	kind  http2.FrameType
	flags http2.Flags
	id    uint32
	n     uint64 // code, last stream id and code, or PING payload
}

// control holds what any goroutine may ask to be written without waiting for the write lock.
type control struct {
	mu      sync.Mutex
	frames  []controlFrame
	updates []*stream // with credit to announce
	rekey   bool      // the peer asked for a KeyUpdate
	recv    recvFlow
	stalls  stalls
}

// post queues a control frame; kick sends it. It never waits.
func (c *conn) post(f controlFrame) {
	k := &c.control
	k.mu.Lock()
	full := len(k.frames) >= controlMax
	if !full {
		k.frames = append(k.frames, f)
		c.controlPending.Store(true)
	}
	k.mu.Unlock()
	if full {
		c.fail(connErr(http2.ErrCodeEnhanceYourCalm, "%d control frames unread by the peer", controlMax))
	}
}

func (c *conn) postReset(id uint32, code Code) {
	c.post(controlFrame{kind: http2.FrameRSTStream, id: id, n: uint64(code)})
}

func (c *conn) postPing(ack bool, data uint64) {
	f := controlFrame{kind: http2.FramePing, n: data}
	if ack {
		f.flags = http2.FlagPingAck
	}
	c.post(f)
}

func (c *conn) postGoAway(last uint32, code Code) {
	c.post(controlFrame{kind: http2.FrameGoAway, n: uint64(last)<<32 | uint64(code)})
}

// kick writes pending control frames unless someone else holds the write lock, who will then do it.
func (c *conn) kick() {
	for c.controlPending.Load() && c.rec.room() && c.wmu.TryLock() {
		c.writeControl()
		c.rec.publish()
		c.wmu.Unlock()
		c.flush()
	}
}

// lockBatch takes the write lock for a batch of s, waiting until there is room for one; it reports false, without the
// lock, once s may send nothing more. Pending control frames go first.
func (c *conn) lockBatch(s *stream) bool {
	for {
		if c.rec.room() {
			return c.lockReserved(s)
		}
		if c.enlist(s, false) {
			<-s.wake
		}
		if s.silenced() || c.hasFailed() {
			c.withdraw(s)
			return false
		}
	}
}

// lockReserved is lockBatch for a batch whose room was reserved.
func (c *conn) lockReserved(s *stream) bool {
	c.wmu.Lock()
	if c.controlPending.Load() {
		c.writeControl()
	}
	if !s.silenced() { // looked at under the lock, under which RST_STREAM is written too
		return true
	}
	c.unlockBatch()
	return false
}

// unlockBatch gives the write lock back and sends what was written.
func (c *conn) unlockBatch() {
	c.rec.publish()
	c.wmu.Unlock()
	c.rec.gather()
	c.flush()
	if c.controlPending.Load() {
		c.kick()
	}
}

func (c *conn) flush() {
	if err := c.rec.flush(); err != nil {
		c.fail(&ConnectionError{Err: err})
	}
	c.roomMade()
	if c.finishing.Load() {
		c.rec.wakeFlusher() // it closes the connection once that was the last
	}
}

// write seals b, of which the byte behind it may be used meanwhile. After the end that sayEnd wrote there is nothing left but answers to a peer that has not seen
// it yet, which needs none. The write lock is held.
func (c *conn) write(b []byte) {
	if !c.ended {
		c.rec.seal(recordData, b)
	}
}

// writeControl turns everything pending into one write. The write lock is held.
func (c *conn) writeControl() {
	k := &c.control
	c.controlPending.Store(false)
	b := c.scratch[:0]
	k.mu.Lock()
	rekey := k.rekey
	k.rekey = false
	for _, f := range k.frames {
		b = f.append(b)
	}
	k.frames = k.frames[:0]
	if n := c.connGrant(); n > 0 {
		b = appendWindowUpdate(b, 0, n)
	}
	for i, s := range k.updates {
		k.updates[i] = nil
		s.announcing = false
		if s.recvClosed {
			continue
		}
		b = appendWindowUpdate(b, s.id, uint32(s.credit))
		s.recvWindow += s.credit
		s.credit = 0
	}
	k.updates = k.updates[:0]
	k.mu.Unlock()
	c.scratch = b[:0]
	if rekey && !c.ended {
		c.rec.rekey()
	}
	if len(b) > 0 {
		c.write(b)
	}
	if cap(b) > controlFrameMax {
		c.scratch = nil
	}
}

func (f controlFrame) append(b []byte) []byte {
	switch f.kind {
	case http2.FrameRSTStream:
		b = appendFrameHeader(b, 4, f.kind, 0, f.id)
		return binary.BigEndian.AppendUint32(b, uint32(f.n))
	case http2.FrameSettings:
		return appendFrameHeader(b, 0, f.kind, http2.FlagSettingsAck, 0)
	}
	b = appendFrameHeader(b, 8, f.kind, f.flags, 0) // PING and GOAWAY carry eight bytes
	return binary.BigEndian.AppendUint64(b, f.n)
}

func appendWindowUpdate(b []byte, id, n uint32) []byte {
	b = appendFrameHeader(b, 4, http2.FrameWindowUpdate, 0, id)
	return binary.BigEndian.AppendUint32(b, n)
}

func appendFrameHeader(b []byte, n int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	b = append(b, byte(n>>16), byte(n>>8), byte(n), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(b, id)
}
