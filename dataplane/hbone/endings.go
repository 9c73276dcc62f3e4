// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"time"

	"golang.org/x/net/http2"
)

// shutdown passes the end of input on, once everything before it is delivered. s.mu is held.
func (s *stream) shutdown() {
	if s.inEnd && !s.inDone && s.app.there() && !s.draining && !s.isDead() {
		if !s.outEnd { // else its owner is about to close the socket, which says the same
			s.app.closeWrite() // an error says that the application is gone, which its reader sees too
		}
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
		s.silence(&ResetError{Code: code, Remote: true})
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	s.die(&ResetError{Code: code, Remote: true}, !gentle)
}

// silence ends what we send; what the peer sent is still delivered. s.mu is held.
func (s *stream) silence(cause error) {
	s.err = cause
	s.mute.Store(true)
	if s.app.polled != nil {
		s.app.polled.SetReadDeadline(time.Unix(1, 0))
	}
	s.signal()
}

// outlive lets a stream go on without its connection, which ended with err, if it was received whole and is yet to be
// delivered. lost says that bytes of ours may not have reached the peer.
func (s *stream) outlive(err error, lost bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	unanswered := s.c.client && s.answer == nil
	if !s.inEnd || s.inDone || s.isDead() || unanswered {
		return false
	}
	if (lost || !s.outEnd) && !s.mute.Load() {
		s.silence(err)
	}
	return true
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
	app, onDeath := s.app.polled, s.onDeath
	s.mu.Unlock()
	s.c.control.mu.Lock()
	s.recvClosed = true
	s.c.control.recv.opened(s)
	s.c.control.mu.Unlock()
	s.c.unqueued(nil, dropped)
	if app != nil {
		app.SetDeadline(time.Unix(1, 0))
	}
	if onDeath != nil {
		onDeath(cause)
	}
	s.signal()
	return true
}
