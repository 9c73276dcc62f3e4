// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"sync/atomic"
	"time"
)

// Config holds what both ends of a connection share. A zero field means its default.
type Config struct {
	// StartWindow is how many bytes a peer may send on a stream whose application has not taken any yet: 16 KiB. That is
	// enough for most requests, and little enough that 200 streams whose applications stall do not fill a connection.
	StartWindow int32
	// StreamWindow is what that grows to as the application takes them, see recvFlow: 512 KiB. With at most 256 KiB one
	// stream alone cost 8 % more CPU per byte, as its sender waited more; more than 512 KiB gained nothing.
	StreamWindow int32
	// ConnWindow is the same for all streams of a connection together, and also its share of queued bytes: as much it
	// may queue before its window shrinks by what it queues: 2 MiB; the protocol's least is 64 KiB.
	ConnWindow int32
	// MaxFrameSize is the largest frame payload that is accepted: 1 MiB. Sent frames stay below 48 KiB.
	MaxFrameSize uint32
	// MaxStreams is how many streams a connection may carry: a server advertises it (200), a client opens at most
	// this many (100), and no more than its peer advertises.
	MaxStreams uint32
	// MaxHeaderList bounds the decoded headers of one request or response in bytes: server 64 KiB, client 16 KiB.
	MaxHeaderList uint32
	// PingInterval is how often an open connection is probed: 10 s.
	PingInterval time.Duration
	// PingTimeout closes a connection whose peer did not answer a PING for so long, and neither took nor sent a byte in the
	// second half of it: 20 s.
	PingTimeout time.Duration
	// HandshakeTimeout bounds TCP connect and TLS handshake: 10 s.
	HandshakeTimeout time.Duration
	// RestAfter is how long nothing may come from an application before its tunnel rests, without a goroutine: 500 ms.
	RestAfter time.Duration
	// Budget bounds the bytes that all connections sharing it may queue for slow applications; nil means one
	// budget of 16 MiB for the process.
	Budget *Budget
	// Guard slows down clients whose connections to a server fail for what they do; nil means one for the process.
	Guard *Guard
}

// Budget counts bytes queued for slow applications across connections. No connection may queue more than a third of what
// is left of it, so that a few that queue all they can leave more than half of it to the others. Above the limit,
// connections are granted no more than the protocol's smallest window and new streams are refused.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Used is the number of bytes queued now.
func (b *Budget) Used() int64 { return b.used.Load() }

// allowance is how much a single connection may queue now.
func (b *Budget) allowance() int64 { return (b.limit - b.used.Load()) / 3 }

func (b *Budget) exceeded() bool { return b.used.Load() > b.limit }

// processBudget serves every Config that names none: applications are slow per process, not per pool.
var processBudget = NewBudget(16 << 20)

func (c Config) withDefaults(maxStreams, maxHeaderList uint32) Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.PingInterval, 10*time.Second)
	def(&c.PingTimeout, 20*time.Second)
	def(&c.HandshakeTimeout, 10*time.Second)
	def(&c.RestAfter, 500*time.Millisecond)
	if c.StreamWindow == 0 {
		c.StreamWindow = 512 << 10
	}
	if c.ConnWindow == 0 {
		c.ConnWindow = 2 << 20
	}
	c.ConnWindow = max(c.ConnWindow, floorWindow)
	if c.StartWindow == 0 {
		c.StartWindow = 16 << 10
	}
	c.StartWindow = min(c.StartWindow, c.StreamWindow)
	if c.MaxFrameSize == 0 {
		c.MaxFrameSize = 1 << 20
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = maxStreams
	}
	if c.MaxHeaderList == 0 {
		c.MaxHeaderList = maxHeaderList
	}
	if c.Budget == nil {
		c.Budget = processBudget
	}
	if c.Guard == nil {
		c.Guard = processGuard
	}
	return c
}
