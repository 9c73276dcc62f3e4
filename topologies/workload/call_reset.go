// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
)

// reset sends, resets the connection, which may discard what is on its way, and learns how the server saw that.
func (s *tcpSession) reset(ctx context.Context, c *Call) error {
	if err := s.open(ctx, c); err != nil {
		return err
	}
	stop := deadline(ctx, s.conn)
	token := rand.Text()
	err := s.sendAndReset(c, token)
	stop()
	if err != nil {
		return err
	}
	s.conn = nil // closed
	if err := s.askReport(ctx, c, token); err != nil {
		return fmt.Errorf("ask for the report: %w", err)
	}
	return nil
}

func (s *tcpSession) sendAndReset(c *Call, token string) error {
	if _, err := fmt.Fprintf(s.conn, "%s %s\n", AskWatch, token); err != nil {
		return err
	}
	if _, err := readSeen(s.r); err != nil { // else the reset may overtake the question
		return err
	}
	n, err := writePattern(s.conn, s.opts.Size)
	c.BytesSent = n
	if err != nil {
		return err
	}
	if err := s.conn.SetLinger(0); err != nil {
		return err
	}
	return s.conn.Close()
}

// peerReset fails with the server's reset; an orderly end is an error of another class.
func (s *tcpSession) peerReset(ctx context.Context, c *Call) error {
	if err := s.open(ctx, c); err != nil {
		return err
	}
	defer deadline(ctx, s.conn)()
	if _, err := fmt.Fprintf(s.conn, "%s %d\n", AskReset, s.opts.Download); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, s.r)
	c.BytesRecv = n
	if err == nil {
		err = fmt.Errorf("the server ended in order: %w", io.ErrUnexpectedEOF)
	}
	return err
}
