// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

// lookup finds a stream for a frame that needs one. It returns nil for a stream that has ended, whose late frames are
// to be ignored, and an error for one that was never opened (RFC 9113 §5.1).
func (c *conn) lookup(id uint32) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[id]
	if s == nil && c.isIdle(id) {
		return nil, connErr(http2.ErrCodeProtocol, "frame on idle stream %d", id)
	}
	return s, nil
}

// isIdle reports whether the stream was never opened. c.mu is held.
func (c *conn) isIdle(id uint32) bool {
	if id%2 == 0 { // only a server could open it, and we accept no push
		return true
	}
	if c.client {
		return id >= c.nextID
	}
	return id > c.highestID
}

// data implements sink.
func (c *conn) data(id, length uint32) error {
	s, err := c.lookup(id)
	if err != nil {
		return err
	}
	if s != nil && s.isDead() {
		s = nil
	}
	connOver, streamOver := c.charge(s, int64(length))
	switch {
	case connOver:
		return connErr(http2.ErrCodeFlowControl, "DATA of %d bytes beyond the connection's window", length)
	case streamOver:
		err, s = c.failFor(s, http2.ErrCodeFlowControl), nil
	case s != nil && s.inputEnded():
		err, s = c.failFor(s, http2.ErrCodeStreamClosed), nil
	}
	c.current, c.content, c.padded = s, 0, 0
	return err
}

// payload implements sink.
func (c *conn) payload(b []byte) error {
	s := c.current
	c.content += len(b)
	if s == nil {
		c.received(nil, len(b), 0, 0)
		return nil
	}
	if len(b) <= smallMax {
		c.collect(s, b)
		return nil
	}
	c.deliverSmall()
	c.deliver(s, b)
	return nil
}

// deliver hands b to the application of s, and books it.
func (c *conn) deliver(s *stream, b []byte) {
	c.volume.add(len(b))
	taken, queued, err := s.deliver(b)
	tooEarly := c.received(s, len(b), taken, queued)
	if err != nil {
		s.appFailed("write", err)
	}
	if tooEarly { // it may be opened again, by a peer that waits
		c.tooEarly++
		s.fail(http2.ErrCodeRefusedStream, &ResetError{Code: http2.ErrCodeRefusedStream})
	}
}

// smallMax is the largest payload that waits for the next one: a peer that sends byte by byte costs one system call for
// what comes in one read, not one for each byte.
const smallMax = 256

// collect keeps a small payload of s until deliverSmall.
func (c *conn) collect(s *stream, b []byte) {
	if c.small != nil && (c.smallOf != s || c.small.w+len(b) > queueChunk) {
		c.deliverSmall()
	}
	if c.small == nil {
		c.small, c.smallOf = newChunk(queueChunk), s
	}
	c.small.w += copy(c.small.buf[c.small.w:], b)
}

// deliverSmall hands over what was collected.
func (c *conn) deliverSmall() {
	k := c.small
	if k == nil {
		return
	}
	c.small = nil
	c.deliver(c.smallOf, k.buf[:k.w])
	c.smallOf = nil
	k.free()
}

// padding implements sink. Padding costs window, so it is given back like bytes that were taken.
func (c *conn) padding(n int) {
	c.received(c.current, n, n, 0)
	c.padded += n
}

// dataEnd implements sink.
func (c *conn) dataEnd(endStream bool) error {
	s := c.current
	c.current = nil
	if c.tooEarly > 0 {
		c.tooEarly--
		if err := c.abandoned(); err != nil {
			return err
		}
	}
	if s != nil && endStream {
		c.deliverSmall()
		s.endInput()
		return nil
	}
	if c.content <= c.padded {
		return c.noise(1, http2.FrameData)
	}
	return nil
}

// ignored implements sink.
func (c *conn) ignored(kind http2.FrameType) error { return c.noise(1, kind) }

// streamError implements sink: the framer refused a frame for one stream.
func (c *conn) streamError(id uint32, code Code, cause error) error {
	c.mu.Lock()
	s := c.streams[id]
	if !c.client && id%2 == 1 && id > c.highestID {
		c.highestID = id // a malformed request opens its stream all the same
	}
	c.mu.Unlock()
	if s != nil {
		return c.failFor(s, code)
	}
	c.postReset(id, code)
	return c.fault(code)
}

// frame implements sink.
func (c *conn) frame(f http2.Frame) error {
	c.deliverSmall() // which may be about to be reset
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return c.headers(f)
	case *http2.RSTStreamFrame:
		return c.resetByPeer(f)
	case *http2.SettingsFrame:
		if err := c.noise(costSettings, http2.FrameSettings); err != nil {
			return err
		}
		return c.settings(f)
	case *http2.PingFrame:
		data := binary.BigEndian.Uint64(f.Data[:])
		if f.IsAck() {
			c.pong(data)
		} else {
			c.postPing(true, data)
		}
		return c.noise(1, http2.FramePing)
	case *http2.GoAwayFrame:
		if err := c.noise(costGoAway, http2.FrameGoAway); err != nil {
			return err
		}
		c.goAway(f)
	case *http2.PushPromiseFrame:
		return connErr(http2.ErrCodeProtocol, "PUSH_PROMISE, which was switched off")
	}
	return nil
}

// resetByPeer handles RST_STREAM.
func (c *conn) resetByPeer(f *http2.RSTStreamFrame) error {
	s, err := c.lookup(f.StreamID)
	switch {
	case err != nil:
		return err
	case s == nil:
		return c.noise(1, http2.FrameRSTStream)
	case !c.client && !s.replied.Load():
		err = c.abandoned()
	}
	s.remoteReset(f.ErrCode)
	return err
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		c.acknowledged()
		return nil
	}
	if n := f.NumSettings(); n > settingsMax {
		return connErr(http2.ErrCodeEnhanceYourCalm, "%d settings in a frame", n)
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			code := http2.ErrCodeProtocol
			if s.ID == http2.SettingInitialWindowSize {
				code = http2.ErrCodeFlowControl
			}
			return connErr(code, "setting %v", s)
		}
		switch s.ID {
		case http2.SettingInitialWindowSize:
			return c.setInitialWindow(s.Val)
		case http2.SettingMaxFrameSize:
			c.peerMaxFrame.Store(s.Val)
		case http2.SettingHeaderTableSize:
			c.peerTableSize.Store(s.Val)
		case http2.SettingMaxConcurrentStreams:
			c.mu.Lock()
			c.peerStreams = s.Val
			c.mu.Unlock()
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.ready = true
	c.mu.Unlock()
	c.post(controlFrame{kind: http2.FrameSettings})
	c.owner.changed(c)
	return nil
}

func (c *conn) headers(f *http2.MetaHeadersFrame) error {
	if c.client {
		s, err := c.lookup(f.StreamID)
		if s != nil {
			return c.response(s, f)
		}
		return err
	}
	return c.request(f)
}

// request handles HEADERS from a client.
func (c *conn) request(f *http2.MetaHeadersFrame) error {
	c.mu.Lock()
	if s := c.streams[f.StreamID]; s != nil {
		c.mu.Unlock()
		return c.failFor(s, http2.ErrCodeProtocol) // no HEADERS on a connected stream (RFC 9113 §8.5)
	}
	if f.StreamID%2 == 0 || f.StreamID <= c.highestID {
		c.mu.Unlock()
		return connErr(http2.ErrCodeProtocol, "HEADERS on stream %d, which cannot be opened", f.StreamID)
	}
	c.highestID = f.StreamID
	if c.draining {
		c.mu.Unlock()
		return c.noise(1, http2.FrameHeaders) // above the last stream that GOAWAY named
	}
	if f.Truncated { // above the header list limit; what was left out may have mattered
		c.mu.Unlock()
		c.postReset(f.StreamID, http2.ErrCodeEnhanceYourCalm)
		return c.faultOf(costHeaders, http2.ErrCodeEnhanceYourCalm)
	}
	full, scarce := uint32(c.active) >= c.cfg.MaxStreams, c.cfg.Budget.exceeded()
	if full || scarce {
		c.mu.Unlock()
		c.postReset(f.StreamID, http2.ErrCodeRefusedStream)
		if full {
			return c.abandoned()
		}
		return nil
	}
	s := newStream(c)
	c.register(s, f.StreamID)
	c.active++
	c.mu.Unlock()
	c.opened()
	if f.StreamEnded() {
		s.endInput()
	}
	return c.owner.request(s, f)
}

// goAway handles the peer's GOAWAY: streams that it did not and will not process may be opened elsewhere.
func (c *conn) goAway(f *http2.GoAwayFrame) {
	var lost []*stream
	c.mu.Lock()
	c.draining = true
	if c.client {
		for id, s := range c.streams {
			if id > f.LastStreamID {
				lost = append(lost, s)
			}
		}
	}
	c.mu.Unlock()
	for _, s := range lost {
		s.die(errUnprocessed, true)
	}
	c.owner.changed(c)
}
