// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"time"

	"golang.org/x/net/http2"
)

// readLoop reads until the connection ends. It waits for nothing but the socket.
func (c *conn) readLoop() error {
	for {
		if err := c.drainInput(); err != nil {
			return err
		}
		c.rec.release()
		if c.controlPending.Load() {
			c.kick()
		}
		if err := c.rec.fill(true); err != nil {
			return &ConnectionError{Err: err}
		}
	}
}

// drainInput handles everything that was read from the socket.
func (c *conn) drainInput() error {
	plain := plainBufs.get()
	defer plainBufs.put(plain)
	w := 0
	for {
		n, err := c.readRecord(plain[w:])
		w += n
		blocked := errors.Is(err, errWouldBlock)
		if blocked && c.rec.filled() {
			// The buffer was full, so the rest of this record is in the kernel: get it before writing half of it.
			if c.rec.fill(false) == nil {
				continue
			}
		}
		if err != nil && !blocked {
			if _, err := c.consume(plain[:w], false); err != nil { // what came before the end counts
				return err
			}
			var ours *ConnectionError
			if errors.As(err, &ours) {
				return ours
			}
			return &ConnectionError{Err: err}
		}
		if w == 0 && blocked {
			return nil
		}
		if !blocked && w <= plainBufSize-recordPayload && c.rec.buffered() {
			continue // gather
		}
		used, err := c.consume(plain[:w], !blocked && (c.rec.buffered() || c.rec.filled()))
		if err != nil {
			return err
		}
		w = copy(plain[:], plain[used:w])
		c.calm()
		if blocked {
			return nil
		}
	}
}

// A connection may bring so many frames per second; then its read loop rests. Loops that are never done with reading
// starve whoever waits for the network: the scheduler looks at that only when nothing else can run, or every 10 ms.
// Frames of honest peers are larger, or fewer.
const (
	calmFrames  = 1024                 // looked at together
	calmTime    = 5 * time.Microsecond // for each
	calmTimeMax = 50 * time.Millisecond
)

// calm rests if the last frames came faster than they may.
func (c *conn) calm() {
	n := c.parser.begun - c.calmBegun
	if n < calmFrames {
		return
	}
	now := time.Now()
	if rest := min(time.Duration(n)*calmTime-now.Sub(c.calmSince), calmTimeMax); rest > 0 {
		time.Sleep(rest)
		now = now.Add(rest)
	}
	c.calmBegun, c.calmSince = c.parser.begun, now
}

// consume parses b; see parser.feed.
func (c *conn) consume(b []byte, more bool) (int, error) {
	skipped := 0
	if c.preface > 0 {
		at := len(http2.ClientPreface) - c.preface
		skipped = min(len(b), c.preface)
		if string(b[:skipped]) != http2.ClientPreface[at:at+skipped] {
			return 0, connErr(http2.ErrCodeProtocol, "no HTTP/2 preface")
		}
		c.preface -= skipped
	}
	n, err := c.parser.feed(b[skipped:], more)
	c.deliverSmall()
	return skipped + n, err
}
