// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"time"
)

// udpSession calls the udp server. A lost datagram is a timeout: nothing is sent twice.
type udpSession struct {
	target target
	opts   Options
	dialer dialer

	conn net.Conn
	last Call
	seen *Seen
	buf  [maxDatagram]byte
}

func (s *udpSession) close() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

func (s *udpSession) call(ctx context.Context, c *Call) (err error) {
	fresh := s.conn == nil
	if fresh {
		if s.conn, err = s.dialer.dial(ctx, "udp", s.target.addr, c); err != nil {
			s.conn = nil
			return err
		}
		s.last = *c
	}
	defer deadline(ctx, s.conn)()
	c.Reused, c.LocalAddr, c.RemoteAddr = !fresh, s.last.LocalAddr, s.last.RemoteAddr
	if fresh {
		answer, err := s.exchange([]byte(AskSeen + "\n"))
		if err != nil {
			return err
		}
		c.FirstByte = time.Since(c.Start)
		if s.seen, err = readSeen(bufio.NewReader(bytes.NewReader(answer))); err != nil {
			return err
		}
	}
	c.Seen = s.seen
	return s.rounds(c, s.opts.rounds(fresh), s.opts.pingSize())
}

func (s *udpSession) rounds(c *Call, rounds int, size int64) error {
	msg := make([]byte, size)
	if _, err := io.ReadFull(&patternReader{n: size}, msg); err != nil {
		return err
	}
	for range rounds {
		answer, err := s.exchange(msg)
		if err != nil {
			return err
		}
		c.BytesSent += size
		c.BytesRecv += int64(len(answer))
		if !bytes.Equal(answer, msg) {
			return fmt.Errorf("%w: datagram of %d bytes for one of %d", errMismatch, len(answer), size)
		}
		c.Rounds++
	}
	return nil
}

func (s *udpSession) exchange(msg []byte) ([]byte, error) {
	if _, err := s.conn.Write(msg); err != nil {
		return nil, err
	}
	n, err := s.conn.Read(s.buf[:])
	return s.buf[:n], err
}
