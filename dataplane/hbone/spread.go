// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"sync/atomic"
	"time"
)

// Connections that are not full are joined by another, where there may be several, once they carry spreadFrom streams each, on
// average; not for a while after an attempt that failed. Small messages gain from company: what many streams have to say goes into
// one record and one write, and wakes the peer once. So streams that carry such stay together, up to that many.
const (
	spreadFrom  = 3
	spreadPause = time.Second
	together    = 16
)

// A key carries small messages if its bytes come in pieces of less than bulkPiece, on average of at least lookAfter pieces. One
// that is not known yet might carry bulk, whose streams stay where they are.
const (
	bulkPiece = 8 << 10
	lookAfter = 32
)

// volume counts what a connection carries for applications, both ways: bytes, and the pieces in which they came.
type volume struct{ bytes, pieces atomic.Uint64 }

func (v *volume) add(n int) {
	v.bytes.Add(uint64(n))
	v.pieces.Add(1)
	if n >= bulkPiece {
		bulkBytes.Add(uint64(n))
	}
}

var bulkBytes atomic.Uint64

// BulkBytes is how many bytes the process's tunnels have carried, both ways, in pieces that are no small messages.
func BulkBytes() uint64 { return bulkBytes.Load() }

// look notes what the streams have carried since it was last noted. Pool.mu is held.
func (e *entry) look() {
	var bytes, pieces uint64
	for _, c := range e.conns {
		bytes += c.volume.bytes.Load() - c.seenBytes
		pieces += c.volume.pieces.Load() - c.seenPieces
	}
	if pieces < lookAfter {
		return
	}
	for _, c := range e.conns {
		c.seenBytes, c.seenPieces = c.volume.bytes.Load(), c.volume.pieces.Load()
	}
	e.small = bytes < bulkPiece*pieces
}

// spreadOf is to how many connections the streams of e go, and how many go to one before they go to others.
func (p *Pool) spreadOf(e *entry) (conns, each int) {
	if e.small {
		return p.cfg.Spread, min(together, int(p.cfg.MaxStreams))
	}
	return p.cfg.SpreadBulk, 1
}

// take reserves a place on the connection of the first few with the fewest streams, or the first with fewer than each; on any if
// those are full; nil if there is none. Pool.mu is held.
func (e *entry) take(few, each int, avoid *conn) *conn {
	for {
		best := fewest(e.conns[:min(few, len(e.conns))], each, avoid)
		if best == nil {
			best = fewest(e.conns, each, avoid)
		}
		if best == nil || best.take() {
			return best
		}
	}
}

// fewest is the connection with the fewest streams that takes another, where fewer than each are none; nil if there is none.
func fewest(conns []*conn, each int, avoid *conn) (best *conn) {
	least := 0
	for _, c := range conns {
		n, takes := c.load()
		if n = max(n, each-1); takes && c != avoid && (best == nil || n < least) {
			best, least = c, n
		}
	}
	return best
}

// spread begins another connection if those that there are carry enough. p.mu is held.
func (p *Pool) spread(ctx context.Context, k Key, e *entry) {
	conns, each := p.spreadOf(e)
	if len(e.conns) >= conns || e.attempt != nil {
		return
	}
	streams := 0
	for _, c := range e.conns {
		n, _ := c.load()
		streams += n
	}
	if streams >= max(spreadFrom, each)*len(e.conns) && time.Now().After(e.another) {
		e.attempt = p.connect(ctx, k)
	}
}
