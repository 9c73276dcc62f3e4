// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/relay"
	"golang.org/x/net/http2"
)

// stream is one tunnel, from HEADERS until both directions and its queue are done.
type stream struct {
	c    *conn
	id   uint32        // set by register
	wake chan struct{} // something changed for the goroutine that owns the stream
	dead atomic.Bool   // set with mu held; read anywhere
	mute atomic.Bool   // the peer takes no more bytes, but what it sent is still being delivered

	// Guarded by conn.mu.
	sendWindow int64
	waitsIn    *waitList
	prev, next *stream

	// Guarded by control.mu.
	recvWindow int64
	credit     int64
	announcing bool
	recvClosed bool

	// Owned by the goroutine in relay.
	reader appReader

	mu       sync.Mutex
	app      *net.TCPConn // nil before relay
	appOut   *writer
	queue    queue
	draining bool // a drainer owns appOut and the queue's front
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
	// Until the peer has seen our SETTINGS it may send the protocol's initial window.
	return &stream{c: c, wake: make(chan struct{}, 1), recvWindow: int64(max(c.cfg.StreamWindow, floorWindow))}
}

// register puts s on the connection. c.mu is held.
func (c *conn) register(s *stream, id uint32) {
	s.id = id
	s.sendWindow = c.send.initialWindow
	c.streams[id] = s
}

func (s *stream) isDead() bool { return s.dead.Load() }

// silenced reports whether nothing may be sent any more.
func (s *stream) silenced() bool { return s.dead.Load() || s.mute.Load() }

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// deliver hands b to the application without waiting, and queues what it does not take.
func (s *stream) deliver(b []byte) (taken, queued int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isDead() {
		return 0, 0, nil
	}
	if s.app != nil && !s.draining {
		taken, err = s.appOut.write(b)
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
	if s.app == nil || s.draining || s.queue.size == 0 {
		return
	}
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
			s.c.giveBack(0, -dropped)
			s.c.kick()
			s.signal()
			return
		}
		b := s.queue.front()
		s.mu.Unlock()
		n, err := s.appOut.writeWait(b)
		s.mu.Lock()
		if n > 0 {
			s.queue.consume(n)
			s.bytesIn += uint64(n)
		}
		s.mu.Unlock()
		s.c.giveBack(0, -n)
		s.c.giveBackStream(s, n)
		s.c.kick()
		if err != nil {
			s.appFailed("write", err)
		}
	}
}

// shutdown passes the end of input on, once everything before it is delivered. s.mu is held.
func (s *stream) shutdown() {
	if s.inEnd && !s.inDone && s.app != nil && !s.draining && !s.isDead() {
		s.app.CloseWrite() // an error says that the application is gone, which its reader sees too
		s.inDone = true
	}
}

func (s *stream) inputEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inEnd
}

// endInput handles END_STREAM.
func (s *stream) endInput() {
	s.c.control.mu.Lock()
	s.recvClosed = true
	s.c.control.mu.Unlock()
	s.mu.Lock()
	s.inEnd = true
	s.shutdown()
	s.mu.Unlock()
	s.signal()
}

// remoteReset handles RST_STREAM. After END_STREAM, NO_ERROR and CANCEL only say that the peer wants no more of ours;
// what it sent is still delivered.
func (s *stream) remoteReset(code Code) {
	gentle := code == http2.ErrCodeNo || code == http2.ErrCodeCancel
	s.mu.Lock()
	if gentle && s.inEnd && !s.inDone && !s.isDead() {
		s.err = &ResetError{Code: code, Remote: true}
		s.mute.Store(true)
		if s.app != nil {
			s.app.SetReadDeadline(time.Unix(1, 0))
		}
		s.mu.Unlock()
		s.signal()
		return
	}
	s.mu.Unlock()
	s.die(&ResetError{Code: code, Remote: true}, !gentle)
}

// fail ends the stream by our decision and tells the peer, unless the stream is not, or no longer, on the wire.
func (s *stream) fail(code Code, cause error) {
	if !s.die(cause, true) {
		return
	}
	s.mu.Lock()
	closed := s.mute.Load() || (s.inEnd && s.outEnd)
	s.mu.Unlock()
	s.c.mu.Lock()
	id := s.id
	s.c.mu.Unlock()
	if !closed && id != 0 {
		s.c.postReset(id, code)
		s.c.kick()
	}
}

// appFailed ends the stream because the application's socket broke (RFC 9113 §8.5: CONNECT_ERROR).
func (s *stream) appFailed(op string, err error) {
	if s.isDead() {
		return // its deadline was used to wake us
	}
	s.fail(http2.ErrCodeConnect, &appError{op: op, err: err})
}

// appError is a failure of the application's socket.
type appError struct {
	op  string
	err error
}

func (e *appError) Error() string { return e.op + ": " + e.err.Error() }
func (e *appError) Unwrap() error { return e.err }

// die ends the stream, discards its queue and wakes whoever waits. It reports false if it had ended before.
func (s *stream) die(cause error, abort bool) bool {
	s.mu.Lock()
	if s.isDead() || (s.inDone && s.outEnd) {
		s.mu.Unlock()
		return false
	}
	s.dead.Store(true)
	s.err, s.abort = cause, abort
	dropped := 0
	if !s.draining { // else the drainer holds the queue, and drops it
		dropped = s.queue.clear()
	}
	app, onDeath := s.app, s.onDeath
	s.mu.Unlock()
	s.c.control.mu.Lock()
	s.recvClosed = true
	s.c.control.mu.Unlock()
	s.c.giveBack(0, -dropped)
	if app != nil {
		app.SetDeadline(time.Unix(1, 0))
	}
	if onDeath != nil {
		onDeath(cause)
	}
	s.signal()
	return true
}

// relay moves bytes between app and the stream until both directions are done. appSide says which side app is.
func (s *stream) relay(ctx context.Context, app *net.TCPConn, appSide relay.Side) relay.Result {
	stop := context.AfterFunc(ctx, func() { s.fail(http2.ErrCodeCancel, &cutError{context.Cause(ctx)}) })
	if err := s.attach(app); err != nil {
		s.appFailed("read", err)
	} else {
		s.pump()
	}
	for !s.finished() {
		<-s.wake
	}
	stop()
	s.mu.Lock()
	abort, cause := s.abort, s.err
	r := relay.Result{BytesUp: s.bytesOut, BytesDown: s.bytesIn, Reset: cause != nil}
	s.mu.Unlock()
	if abort {
		app.SetLinger(0)
	}
	app.Close()
	s.c.forget(s)
	peerSide := relay.Upstream
	if appSide == relay.Upstream {
		r.BytesUp, r.BytesDown = r.BytesDown, r.BytesUp
		peerSide = relay.Downstream
	}
	r.Err = resultError(cause, appSide, peerSide)
	return r
}

// cutError is the cause of a context that cut a stream.
type cutError struct{ err error }

func (e *cutError) Error() string { return e.err.Error() }

// resultError names the side at fault, and drops what counts as a normal end (protocols A1.8).
func resultError(cause error, app, peer relay.Side) error {
	var ae *appError
	var re *ResetError
	var ce *cutError
	switch {
	case cause == nil:
		return nil
	case errors.As(cause, &ae):
		if relay.Normal(ae.err) {
			return nil
		}
		return &relay.Error{Side: app, Op: ae.op, Err: ae.err}
	case errors.As(cause, &ce):
		return ce.err
	case errors.As(cause, &re):
		if re.Remote && (re.Code == http2.ErrCodeNo || re.Code == http2.ErrCodeCancel || re.Code == http2.ErrCodeConnect) {
			return nil
		}
		return &relay.Error{Side: peer, Op: "reset", Err: re}
	}
	return &relay.Error{Side: peer, Op: "read", Err: cause}
}

// attach gives the stream its application and starts to deliver what came before.
func (s *stream) attach(app *net.TCPConn) error {
	rc, err := app.SyscallConn()
	if err != nil {
		return err
	}
	s.reader.init(s, rc)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.app, s.appOut = app, newWriter(rc)
	if s.isDead() {
		return nil
	}
	s.startDrainer()
	s.shutdown()
	return nil
}

// finished reports whether the stream is over and nobody but its owner uses the application's socket.
func (s *stream) finished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return false
	}
	return s.isDead() || (s.inDone && (s.outEnd || s.mute.Load()))
}

// forget takes an ended stream off the connection.
func (c *conn) forget(s *stream) {
	c.mu.Lock()
	if c.streams[s.id] == s {
		delete(c.streams, s.id)
		c.releaseSlot()
	}
	c.leave(s)
	c.passOn()
	c.mu.Unlock()
	c.owner.changed(c)
}

// releaseSlot gives a stream's place back. c.mu is held.
func (c *conn) releaseSlot() {
	if c.active--; c.active == 0 && c.idleFor > 0 {
		c.idleSince = time.Now()
	}
}
