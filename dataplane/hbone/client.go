// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/http2"
)

// take reserves a place for one stream; false when the connection is full or drains, or proves nothing any more: what an
// identity was good for must not outlive its certificate by a pool.
func (c *conn) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.takesLocked() {
		return false
	}
	c.active++
	return true
}

// load is how many streams the connection carries, and whether take would add one.
func (c *conn) load() (n int, takes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.active, c.takesLocked()
}

func (c *conn) takesLocked() bool {
	if !c.until.IsZero() && !time.Now().Before(c.until) {
		return false
	}
	return !c.draining && !c.failed && uint32(c.active) < min(c.cfg.MaxStreams, c.peerStreams)
}

// unusable says why the connection takes no stream, unless it does or is merely full. One whose peer allows none is let
// go, so that they do not pile up.
func (c *conn) unusable() error {
	c.mu.Lock()
	none, over, err := c.peerStreams == 0, c.draining || c.failed, c.err
	c.mu.Unlock()
	switch {
	case err != nil:
		return err
	case none:
		c.drain()
		return errNoStreams
	case over:
		return errNotSent
	}
	return nil
}

// untake gives a reserved place back.
func (c *conn) untake() {
	c.mu.Lock()
	c.releaseSlot()
	c.mu.Unlock()
	c.owner.changed(c)
}

// open asks for a tunnel, in a place that take reserved, and waits for the answer.
func (c *conn) open(ctx context.Context, r *Request) (*Stream, error) {
	s := newStream(c)
	stop := context.AfterFunc(ctx, func() { s.fail(http2.ErrCodeCancel, &cutError{context.Cause(ctx)}) })
	defer stop()
	if !c.ask(s, r) {
		c.untake()
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		return nil, errNotSent
	}
	for {
		s.mu.Lock()
		answer, dead, cause := s.answer, s.isDead(), s.err
		s.mu.Unlock()
		if answer != nil && (!dead || !ok(answer)) {
			return s.answered(answer)
		}
		if dead {
			c.forget(s)
			return nil, c.openError(cause)
		}
		<-s.wake
	}
}

// ask writes HEADERS on a new stream; false when the connection drains or the stream died before.
func (c *conn) ask(s *stream, r *Request) bool {
	if !c.lockBatch(s) {
		return false
	}
	defer c.unlockBatch()
	c.mu.Lock()
	if c.failed || c.draining || s.isDead() {
		c.mu.Unlock()
		return false
	}
	c.register(s, c.nextID)
	if c.nextID += 2; c.nextID > lastAny-2 {
		c.draining = true // ids are used up (RFC 9113 §5.1.1)
	}
	c.mu.Unlock()
	c.writeHeaders(s.id, false, []Header{{":method", "CONNECT"}, {":authority", r.Authority}}, r.Header, r.Once)
	return true
}

// openError tells a stream's death before an answer from a connection's that never came about.
func (c *conn) openError(cause error) error {
	var ce *ConnectionError
	var re *ResetError
	var cut *cutError
	c.mu.Lock()
	ready := c.ready
	c.mu.Unlock()
	switch {
	case errors.As(cause, &cut):
		return cut.err
	case errors.As(cause, &ce) && !ready:
		return &ConnectError{Stage: StageH2, Err: cause}
	case errors.As(cause, &re) && re.Remote && re.Code == http2.ErrCodeRefusedStream:
		return errors.Join(errUnprocessed, cause)
	case errors.As(cause, &ce) && (errors.Is(cause, syscall.ECONNRESET) || errors.Is(cause, syscall.EPIPE)):
		return fmt.Errorf("%w: %w", errLost, cause)
	}
	return cause
}

func ok(f *http2.MetaHeadersFrame) bool {
	status := f.PseudoValue("status")
	return len(status) == 3 && status[0] == '2'
}

// response handles HEADERS from the server.
func (c *conn) response(s *stream, f *http2.MetaHeadersFrame) error {
	status, err := strconv.Atoi(f.PseudoValue("status"))
	s.mu.Lock()
	second := s.answer != nil
	informational := err == nil && status >= 100 && status < 200 && !f.StreamEnded()
	if err == nil && !second && !informational && !f.Truncated {
		s.answer = f
	}
	s.mu.Unlock()
	switch {
	case f.Truncated:
		return c.failFor(s, http2.ErrCodeEnhanceYourCalm)
	case err != nil || second:
		return c.failFor(s, http2.ErrCodeProtocol) // no HEADERS on a connected stream (RFC 9113 §8.5)
	case informational:
		return c.noise(1, http2.FrameHeaders)
	case f.StreamEnded():
		s.endInput()
	default:
		s.signal()
	}
	return nil
}

// answered turns a response into a Stream or an error.
func (s *stream) answered(f *http2.MetaHeadersFrame) (*Stream, error) {
	h := regular(f)
	if ok(f) {
		return &Stream{s: s, header: h}, nil
	}
	status, _ := strconv.Atoi(f.PseudoValue("status"))
	err := &StatusError{Code: status, Header: h}
	s.fail(http2.ErrCodeCancel, err)
	s.c.forget(s)
	return nil, err
}

// regular returns the header fields that are not pseudo ones.
func regular(f *http2.MetaHeadersFrame) []Header {
	fields := f.RegularFields()
	h := make([]Header, len(fields))
	for i, x := range fields {
		h[i] = Header{Name: x.Name, Value: x.Value}
	}
	return h
}
