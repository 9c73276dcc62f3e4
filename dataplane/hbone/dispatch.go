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
		s.fail(http2.ErrCodeFlowControl, &ResetError{Code: http2.ErrCodeFlowControl})
		s = nil
	case s != nil && s.inputEnded():
		s.fail(http2.ErrCodeStreamClosed, &ResetError{Code: http2.ErrCodeStreamClosed})
		s = nil
	}
	c.current = s
	return nil
}

// payload implements sink.
func (c *conn) payload(b []byte) error {
	s := c.current
	if s == nil {
		c.giveBack(len(b), 0)
		return nil
	}
	taken, queued, err := s.deliver(b)
	c.giveBack(len(b), queued)
	if taken > 0 {
		c.giveBackStream(s, taken)
	}
	if err != nil {
		s.appFailed("write", err)
	}
	return nil
}

// padding implements sink. Padding costs window, so it is given back like bytes that were taken.
func (c *conn) padding(n int) {
	c.giveBack(n, 0)
	if c.current != nil {
		c.giveBackStream(c.current, n)
	}
}

// dataEnd implements sink.
func (c *conn) dataEnd(endStream bool) error {
	s := c.current
	c.current = nil
	if s != nil && endStream {
		s.endInput()
	}
	return nil
}

// streamError implements sink: the framer refused a frame for one stream.
func (c *conn) streamError(id uint32, code Code, cause error) error {
	c.mu.Lock()
	s := c.streams[id]
	if !c.client && id%2 == 1 && id > c.highestID {
		c.highestID = id // a malformed request opens its stream all the same
	}
	c.mu.Unlock()
	if s != nil {
		s.fail(code, &ResetError{Code: code})
		return nil
	}
	c.postReset(id, code)
	return nil
}

// frame implements sink.
func (c *conn) frame(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return c.headers(f)
	case *http2.RSTStreamFrame:
		s, err := c.lookup(f.StreamID)
		if s != nil {
			s.remoteReset(f.ErrCode)
		}
		return err
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		data := binary.BigEndian.Uint64(f.Data[:])
		if f.IsAck() {
			c.pong(data)
		} else {
			c.postPing(true, data)
		}
	case *http2.GoAwayFrame:
		c.goAway(f)
	case *http2.PushPromiseFrame:
		return connErr(http2.ErrCodeProtocol, "PUSH_PROMISE, which was switched off")
	}
	return nil
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
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
			s.response(f)
		}
		return err
	}
	c.mu.Lock()
	if s := c.streams[f.StreamID]; s != nil {
		c.mu.Unlock()
		// RFC 9113 §8.5: no HEADERS on a connected stream.
		s.fail(http2.ErrCodeProtocol, &ResetError{Code: http2.ErrCodeProtocol})
		return nil
	}
	if f.StreamID%2 == 0 || f.StreamID <= c.highestID {
		c.mu.Unlock()
		return connErr(http2.ErrCodeProtocol, "HEADERS on stream %d, which cannot be opened", f.StreamID)
	}
	c.highestID = f.StreamID
	if c.draining {
		c.mu.Unlock()
		return nil // above the last stream that GOAWAY named
	}
	if f.Truncated { // above the header list limit; what was left out may have mattered
		c.mu.Unlock()
		c.postReset(f.StreamID, http2.ErrCodeEnhanceYourCalm)
		return nil
	}
	if uint32(c.active) >= c.cfg.MaxStreams || c.cfg.Budget.exceeded() {
		c.mu.Unlock()
		c.postReset(f.StreamID, http2.ErrCodeRefusedStream)
		return nil
	}
	s := newStream(c)
	c.register(s, f.StreamID)
	c.active++
	c.mu.Unlock()
	if f.StreamEnded() {
		s.endInput()
	}
	c.owner.request(s, f)
	return nil
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
