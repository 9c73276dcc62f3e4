// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/relay"
	"golang.org/x/net/http2"
)

// relay moves bytes between app and the stream until both directions are done, and calls done then. It returns before that
// when the stream comes to rest: another goroutine goes on once something happens. appSide says which side app is.
func (s *stream) relay(ctx context.Context, app Socket, appSide relay.Side, done func(relay.Result)) {
	s.appSide, s.done = appSide, done
	s.uncut = context.AfterFunc(ctx, func() { s.fail(http2.ErrCodeCancel, &cutError{context.Cause(ctx)}) })
	if err := s.attach(app); err != nil {
		s.appFailed("read", err)
		s.pumped = true
		app.Close()
	}
	s.goOn()
}

// goOn does what there is to do, until the stream has ended or rests.
func (s *stream) goOn() {
	if !s.pumped {
		if s.pump() {
			return
		}
		s.pumped = true
	}
	for !s.finished() {
		if s.rest(s.finished, s.park) {
			return
		}
	}
	s.done(s.end())
}

// end takes apart what has finished.
func (s *stream) end() relay.Result {
	s.uncut()
	s.mu.Lock()
	cause, abort := s.err, s.abort
	r := relay.Result{BytesUp: s.bytesOut, BytesDown: s.bytesIn, Reset: cause != nil}
	if cause == nil {
		s.app.finish()
	} else {
		s.app.close(abort)
	}
	s.mu.Unlock()
	s.c.forget(s)
	peerSide := relay.Upstream
	if s.appSide == relay.Upstream {
		r.BytesUp, r.BytesDown = r.BytesDown, r.BytesUp
		peerSide = relay.Downstream
	}
	r.Err = resultError(cause, s.appSide, peerSide)
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
func (s *stream) attach(app Socket) error {
	rc, err := app.SyscallConn()
	if err != nil {
		return err
	}
	s.reader.init(s)
	s.c.control.mu.Lock()
	s.c.control.recv.opened(s)
	s.c.settle()
	s.c.control.mu.Unlock()
	s.mu.Lock()
	s.app.polled, s.app.out = app, newWriter(rc)
	s.draining = s.queue.size > 0 && !s.isDead()
	here := s.draining && !s.c.hireDrainer(s)
	s.shutdown()
	s.mu.Unlock()
	if here {
		s.drain()
	}
	return nil
}

// hireDrainer starts a drainer for what came before the application was there; false when the connection has ended,
// and waits for no more of them.
func (c *conn) hireDrainer(s *stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.failed {
		c.drainers.Go(s.drain)
	}
	return !c.failed
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
