// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/net/http2"
)

// What TLS says after its handshake (RFC 8446 §4.6, §6).
const (
	typeNewSessionTicket = 4
	typeKeyUpdate        = 24
	messageHeaderLen     = 4
	// A message may be so long: a ticket may hold a chain of certificates.
	messageMax = 64 << 10

	alertFatal = 2
	// So many records in a row may carry no byte of HTTP/2, as crypto/tls has it.
	uselessMax = 16
)

var closeNotify = []byte{1, alertCloseNotify}

// readRecord decrypts the next record into dst and returns how many bytes of HTTP/2 it brought, perhaps none;
// errWouldBlock when no whole record is buffered, io.EOF when the peer ended the connection.
func (c *conn) readRecord(dst []byte) (int, error) {
	kind, n, err := c.rec.open(dst)
	if err != nil {
		return 0, err
	}
	if kind == recordData && n > 0 {
		c.useless = 0
		return n, nil
	}
	if c.useless++; c.useless > uselessMax {
		return 0, &recordError{alertUnexpectedMessage, "too many records that carry nothing"}
	}
	switch kind {
	case recordData:
		return 0, nil
	case recordAlert:
		return 0, alerted(dst[:n])
	case recordHandshake:
		return 0, c.tlsMessages(dst[:n])
	}
	return 0, &recordError{alertUnexpectedMessage, fmt.Sprintf("record with content of type %d", kind)}
}

func alerted(b []byte) error {
	switch {
	case len(b) != 2:
		return &recordError{alertUnexpectedMessage, "alert of the wrong length"}
	case b[1] == alertCloseNotify:
		return io.EOF
	case b[1] == alertUserCanceled:
		return nil
	}
	return fmt.Errorf("tls: alert %d from the peer", b[1])
}

// tlsMessages handles messages of the handshake protocol, which may be spread over records.
func (c *conn) tlsMessages(b []byte) error {
	c.message = append(c.message, b...)
	for len(c.message) >= messageHeaderLen {
		m := c.message
		n := messageHeaderLen + int(binary.BigEndian.Uint32(m)&0xffffff)
		if n > messageMax {
			return &recordError{alertUnexpectedMessage, fmt.Sprintf("message of %d bytes", n)}
		}
		if len(m) < n {
			return nil
		}
		if err := c.tlsMessage(m[0], m[messageHeaderLen:n], len(m) > n); err != nil {
			return err
		}
		c.message = m[n:]
	}
	if len(c.message) == 0 {
		c.message = nil
	}
	return nil
}

// tlsMessage handles one; more says that others follow in its record.
func (c *conn) tlsMessage(kind byte, body []byte, more bool) error {
	switch {
	case kind == typeNewSessionTicket && c.client: // nobody resumes
		return nil
	case kind == typeKeyUpdate && len(body) == 1 && body[0] <= 1 && !more:
		if !c.abuse.noise.spend(1) {
			return connErr(http2.ErrCodeEnhanceYourCalm, "too many KeyUpdates")
		}
		if body[0] == 1 {
			c.control.mu.Lock()
			c.control.rekey = true // one answer for all that were asked for meanwhile
			c.controlPending.Store(true)
			c.control.mu.Unlock()
		}
		return c.rec.opener.update()
	}
	return &recordError{alertUnexpectedMessage, fmt.Sprintf("handshake message of type %d", kind)}
}

// rekey tells the peer of the next key and goes on to it. The write lock is held.
func (r *recordConn) rekey() {
	update := []byte{typeKeyUpdate, 0, 0, 1, 0}
	size := sealedLen(len(update))
	if r.batch == nil {
		r.batch = newOutBuf(size)
	} else if r.batch.room() < size {
		r.batch = r.batch.grow(size)
	}
	r.batch.b = r.sealer.seal(r.batch.b, recordHandshake, update)
	if err := r.sealer.update(); err != nil {
		panic(err) // the same derivation succeeded when the connection was made
	}
}
