// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/relay"
	"golang.org/x/net/http2"
)

// stream is one tunnel, from HEADERS until both directions and its queue are done.
type stream struct {
	c         *conn
	id        uint32        // set by register
	wake      chan struct{} // something changed for whoever owns the stream
	dead      atomic.Bool   // set with mu held; read anywhere
	replied   atomic.Bool   // server: an answer is written
	stalledAt atomic.Int64  // since when the application waits for window; nanoseconds since the connection's start, 0: it does not
	mute      atomic.Bool   // the peer takes no more bytes, but what it sent is still being delivered

	// Guarded by conn.mu.
	sendWindow int64
	waitsIn    *waitList
	starved    bool // waits for window of its own
	prev, next *stream

	// Guarded by control.mu.
	recvWindow int64
	credit     int64
	window     int64 // recvWindow + credit + what is queued
	round      time.Time
	queued     int64
	announcing bool
	recvClosed bool
	withheld   bool  // see stalls
	open       bool  // server: it has its application, or never will
	early      int64 // queued before

	// Owned by the goroutine in relay, or by nobody while parked.
	reader   appReader
	onAnswer func() // once, when the application's first byte is there
	pumped   bool   // nothing more is read from the application
	appSide  relay.Side
	uncut    func() bool
	done     func(relay.Result)

	parked  atomic.Bool // see rest
	told    atomic.Bool // something changed since rest looked
	watched uint64      // see watcher, whose mu guards it

	mu       sync.Mutex
	app      appSocket
	queue    queue
	draining bool // a drainer owns app.out and the queue's front
	inEnd    bool // END_STREAM was received
	inDone   bool // and everything before it delivered
	outEnd   bool // END_STREAM was sent
	err      error
	abort    bool // reset the application's socket
	onDeath  func(error)
	bytesIn  uint64
	bytesOut uint64
	answer   *http2.MetaHeadersFrame // client: the response
}

func newStream(c *conn) *stream {
	return &stream{c: c, wake: make(chan struct{}, 1)}
}

// register puts s on the connection. c.mu is held.
func (c *conn) register(s *stream, id uint32) {
	s.id = id
	s.sendWindow = c.send.initialWindow
	s.window = int64(c.cfg.StartWindow)
	if !c.acked {
		s.window = max(s.window, floorWindow)
	}
	s.recvWindow = s.window
	c.streams[id] = s
}

func (s *stream) isDead() bool { return s.dead.Load() }

// silenced reports whether nothing may be sent any more.
func (s *stream) silenced() bool { return s.dead.Load() || s.mute.Load() }

func (s *stream) signal() {
	s.told.Store(true)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	s.rouse()
}

// deliver hands b to the application without waiting, and queues what it does not take.
func (s *stream) deliver(b []byte) (taken, queued int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isDead() {
		return 0, 0, nil
	}
	if s.app.there() && !s.draining {
		taken, err = s.app.out.write(b)
		s.bytesIn += uint64(taken)
		if err != nil || taken == len(b) {
			return taken, 0, err
		}
	}
	s.queue.append(b[taken:])
	s.startDrainer()
	return taken, len(b) - taken, nil
}

// startDrainer lets a goroutine write the queue, if there is one and somewhere to write it to. s.mu is held.
func (s *stream) startDrainer() {
	if !s.app.there() || s.draining || s.queue.size == 0 {
		return
	}
	s.app.rejoin()
	s.draining = true
	s.c.drainers.Go(s.drain)
}

// drain lives while the queue is not empty.
func (s *stream) drain() {
	for {
		s.mu.Lock()
		if s.isDead() || s.queue.size == 0 {
			dropped := s.queue.clear()
			s.draining = false
			s.shutdown()
			s.mu.Unlock()
			s.c.unqueued(nil, dropped)
			s.c.kick()
			s.signal()
			return
		}
		b := s.queue.front()
		s.mu.Unlock()
		n, err := s.app.out.writeWait(b)
		s.mu.Lock()
		if n > 0 {
			s.queue.consume(n)
			s.bytesIn += uint64(n)
		}
		s.mu.Unlock()
		s.c.unqueued(s, n)
		s.c.kick()
		if err != nil {
			s.appFailed("write", err)
		}
	}
}
