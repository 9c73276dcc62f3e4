// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"

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
		n, err := c.tls.Read(plain[w:])
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
		if blocked {
			return nil
		}
	}
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
