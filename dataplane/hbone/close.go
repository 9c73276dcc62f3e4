// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"golang.org/x/net/http2"
)

// flushLoop writes what flush could not write without waiting, and ends the connection when it is to finish.
func (c *conn) flushLoop() {
	for range c.rec.handover {
		if c.shouldFinish() {
			c.sayEnd()
		}
		err := c.rec.flushWait(c.cfg.PingTimeout, c.roomMade)
		if err != nil {
			c.fail(&ConnectionError{Err: fmt.Errorf("flush: %w", err)})
			return
		}
		c.kick()
		c.closeWhenFlushed()
	}
}

func (c *conn) shouldFinish() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finishing.Load() && !c.endSaid
}

// sayEnd writes GOAWAY and close_notify.
func (c *conn) sayEnd() {
	c.mu.Lock()
	c.endSaid = true
	last := c.highestID
	c.mu.Unlock()
	c.postGoAway(last, http2.ErrCodeNo)
	c.wmu.Lock()
	c.writeControl()
	c.rec.seal(recordAlert, closeNotify)
	c.ended = true
	c.rec.publish()
	c.wmu.Unlock()
}

// closeWhenFlushed ends the TCP stream after the last byte. The peer closes when it has seen that; the read loop waits
// for it, so that closing resets nothing.
func (c *conn) closeWhenFlushed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.endSaid && !c.failed && c.rec.idle() {
		c.rec.TCPConn.CloseWrite()
		c.rec.TCPConn.SetReadDeadline(time.Now().Add(c.cfg.PingTimeout))
	}
}

// fail ends the connection and its streams. Only the first call counts. When it was not our decision, streams that were
// received whole are still delivered; cut ends those too.
func (c *conn) fail(err error) {
	var ce *ConnectionError
	ours := errors.As(err, &ce) && ce.ours
	c.mu.Lock()
	if c.failed {
		c.mu.Unlock()
		return
	}
	c.failed, c.draining, c.cutOff = true, true, ours
	c.offended = ours && ce.Code != http2.ErrCodeNo
	if !c.finishing.Load() || c.active > 0 {
		c.err = err
	}
	all := slices.Collect(maps.Values(c.streams))
	last := c.highestID
	for _, l := range []*waitList{&c.send.forRoom, &c.send.forWindow} {
		for s := l.first; s != nil; s = l.first {
			c.leave(s)
			s.signal()
		}
	}
	c.timer.Stop()
	c.mu.Unlock()
	var broken *recordError
	switch {
	case ours:
		c.goodbye(recordData, controlFrame{kind: http2.FrameGoAway, n: uint64(last)<<32 | uint64(ce.Code)}.append(nil))
	case errors.As(err, &broken):
		c.goodbye(recordAlert, []byte{alertFatal, broken.alert})
	}
	c.rec.abandon()
	lost := !errors.Is(err, io.EOF) && !c.rec.idle()
	for _, s := range all {
		if ours || !s.outlive(err, lost) {
			s.die(err, true)
		}
	}
	c.rec.TCPConn.SetDeadline(time.Unix(1, 0))
	c.owner.changed(c)
}

// cut ends the connection by our decision, and every stream, those that outlived it included.
func (c *conn) cut(why string) {
	err := connErr(http2.ErrCodeNo, "%s", why)
	c.fail(err)
	c.mu.Lock()
	c.cutOff = true
	all := slices.Collect(maps.Values(c.streams))
	c.mu.Unlock()
	for _, s := range all {
		s.die(err, true)
	}
	c.owner.changed(c)
}

// goodbye tells the peer why, if that can be done at once; the connection fails either way.
func (c *conn) goodbye(kind byte, b []byte) {
	if !c.wmu.TryLock() {
		return
	}
	if !c.ended {
		c.rec.seal(kind, b)
		if kind != recordAlert {
			c.rec.seal(recordAlert, closeNotify)
		}
		c.ended = true
	}
	c.rec.publish()
	c.wmu.Unlock()
	_ = c.rec.flush()
}

// A connection that we end for what the peer does is closed for sending, and what the peer goes on to send is dropped for
// a while: closing at once would reset it, and GOAWAY might never be read. It is dropped slowly: who floods waits then.
const (
	lingerTime  = 100 * time.Millisecond
	lingerBytes = 1 << 20
	lingerPause = 5 * time.Millisecond // after a full buffer
)

func (c *conn) linger() {
	if !c.hasOffended() {
		return
	}
	t := c.rec.TCPConn
	_ = t.CloseWrite()
	_ = t.SetReadDeadline(time.Now().Add(lingerTime))
	b := cipherBuf(false)
	defer freeCipherBuf(b)
	for left := lingerBytes; left > 0; {
		n, err := t.Read(b)
		if left -= n; err != nil {
			return
		}
		if n == len(b) {
			time.Sleep(lingerPause)
		}
	}
}

// hasOffended reports whether the connection ended for what the peer did, its end having been agreed on before or not.
func (c *conn) hasOffended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.offended
}

// isCut reports whether the connection has ended and no stream outlives it.
func (c *conn) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cutOff
}

func (c *conn) hasFailed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// isDraining reports whether no new stream may be opened, and how many are left.
func (c *conn) isDraining() (draining bool, active int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining, c.active
}

// finish closes the connection once everything written is flushed. No stream may be left.
func (c *conn) finish() {
	c.mu.Lock()
	c.finishing.Store(true)
	c.draining = true
	c.mu.Unlock()
	c.rec.wakeFlusher()
}
