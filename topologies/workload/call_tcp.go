// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// tcpSession calls the tcp and tcp-server-first servers.
type tcpSession struct {
	target target
	opts   Options
	dialer dialer

	together *crowd // with Options.Hold: the calls of one Do

	conn *net.TCPConn
	r    *bufio.Reader
	seen *Seen
	last Call // of the connection: addresses
}

func (s *tcpSession) close() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

func (s *tcpSession) call(ctx context.Context, c *Call) error {
	switch {
	case s.opts.PeerHalfClose:
		return s.peerHalfClose(ctx, c)
	case s.opts.Reset:
		return s.reset(ctx, c)
	case s.opts.PeerReset:
		return s.peerReset(ctx, c)
	}
	fresh := s.conn == nil
	if fresh {
		if err := s.open(ctx, c); err != nil {
			return err
		}
		s.last = *c
	}
	defer deadline(ctx, s.conn)()
	c.Reused, c.LocalAddr, c.RemoteAddr = !fresh, s.last.LocalAddr, s.last.RemoteAddr
	if s.opts.HalfClose {
		return s.halfClose(c)
	}
	if fresh {
		if err := s.greet(c); err != nil {
			return err
		}
		if err := s.hold(ctx, c); err != nil {
			return err
		}
	}
	c.Seen = s.seen
	if s.opts.PingPong > 0 || (s.opts.Size == 0 && !fresh) {
		return s.pingPong(c, s.opts.rounds(fresh), s.opts.pingSize())
	}
	return s.echo(ctx, c)
}

func (s *tcpSession) open(ctx context.Context, c *Call) error {
	conn, err := s.dialer.dial(ctx, "tcp", s.target.addr, c)
	if err != nil {
		return err
	}
	s.conn = conn.(*net.TCPConn)
	s.r = bufio.NewReaderSize(conn, patternChunk)
	if s.opts.Silent > 0 && s.target.scheme == "tcp" {
		return s.silent(ctx)
	}
	return nil
}

// silent waits without a word and fails if the peer does not.
func (s *tcpSession) silent(ctx context.Context) error {
	if err := s.conn.SetReadDeadline(time.Now().Add(s.opts.Silent)); err != nil {
		return err
	}
	_, err := s.r.Peek(1)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return s.conn.SetReadDeadline(time.Time{})
	case err == nil:
		return fmt.Errorf("%w: the server spoke during the silence", errMismatch)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("during the silence: %w", err)
}

// greet learns what the server saw: a server-first one says it unasked.
func (s *tcpSession) greet(c *Call) (err error) {
	if s.target.scheme == "tcp" {
		if _, err := io.WriteString(s.conn, AskSeen+"\n"); err != nil {
			return err
		}
	}
	if _, err := s.r.Peek(1); err != nil {
		return err
	}
	c.FirstByte = time.Since(c.Start)
	s.seen, err = readSeen(s.r)
	return err
}

// echo sends Size bytes while it receives and checks them.
func (s *tcpSession) echo(ctx context.Context, c *Call) error {
	if s.opts.Size == 0 {
		return nil
	}
	g, _ := errgroup.WithContext(ctx)
	g.Go(func() error {
		n, err := writePattern(s.conn, s.opts.Size)
		c.BytesSent = n
		if err != nil { // then the answer will not come either
			_ = s.conn.SetReadDeadline(time.Unix(1, 0))
		}
		return err
	})
	got := newChecker()
	_, err := io.CopyN(got, s.r, s.opts.Size)
	if err != nil { // the sender may wait for a peer that no longer reads
		_ = s.conn.SetWriteDeadline(time.Unix(1, 0))
	}
	sendErr := g.Wait()
	c.BytesRecv, c.SHA256 = got.n, got.sum()
	if sendErr != nil && (err == nil || errors.Is(err, os.ErrDeadlineExceeded)) {
		return sendErr
	}
	return err
}

func (s *tcpSession) pingPong(c *Call, rounds int, size int64) error {
	for range rounds {
		n, err := writePattern(s.conn, size)
		c.BytesSent += n
		if err != nil {
			return err
		}
		got := newChecker()
		_, err = io.CopyN(got, s.r, size)
		c.BytesRecv += got.n
		if err != nil {
			return err
		}
		c.Rounds++
	}
	return nil
}

// halfClose sends everything and closes its side before the server answers anything.
func (s *tcpSession) halfClose(c *Call) error {
	if _, err := fmt.Fprintf(s.conn, "%s %d\n", AskTail, s.opts.Download); err != nil {
		return err
	}
	n, err := writePattern(s.conn, s.opts.Size)
	c.BytesSent = n
	if err != nil {
		return err
	}
	if err := s.conn.CloseWrite(); err != nil {
		return err
	}
	if _, err := s.r.Peek(1); err != nil {
		return err
	}
	c.FirstByte = time.Since(c.Start)
	if c.Seen, err = readSeen(s.r); err != nil {
		return err
	}
	if err := c.Seen.got(s.opts.Size); err != nil {
		return err
	}
	return receiveAll(c, s.r, s.opts.Download)
}

// receiveAll reads to the end, which has to come after exactly n bytes.
func receiveAll(c *Call, r io.Reader, n int64) error {
	got := newChecker()
	_, err := io.Copy(got, r)
	c.BytesRecv, c.SHA256 = got.n, got.sum()
	if err == nil && got.n != n {
		err = fmt.Errorf("%w: the end came after %d of %d bytes", io.ErrUnexpectedEOF, got.n, n)
	}
	return err
}

// got checks what the server says that it received.
func (s *Seen) got(n int64) error {
	if s.Bytes != n || s.SHA256 != patternSum(n) {
		return fmt.Errorf("%w: the server received %d bytes, %d were sent", errMismatch, s.Bytes, n)
	}
	return nil
}

// peerHalfClose lets the server end first and then sends to it. The server can no longer say on that connection what
// it received, so a second one asks.
func (s *tcpSession) peerHalfClose(ctx context.Context, c *Call) error {
	if err := s.open(ctx, c); err != nil {
		return err
	}
	stop := deadline(ctx, s.conn)
	token := rand.Text()
	err := s.afterPeer(c, token)
	stop()
	s.close()
	if err != nil {
		return err
	}
	if err := s.askReport(ctx, c, token); err != nil {
		return fmt.Errorf("ask for the report: %w", err)
	}
	return c.Seen.got(s.opts.Size)
}

// askReport learns on a connection of its own what the server has kept.
func (s *tcpSession) askReport(ctx context.Context, c *Call, token string) (err error) {
	asker := &tcpSession{target: s.target, dialer: s.dialer}
	defer asker.close()
	if err := asker.open(ctx, &Call{Start: c.Start}); err != nil {
		return err
	}
	defer deadline(ctx, asker.conn)()
	if _, err := fmt.Fprintf(asker.conn, "%s %s\n", AskReport, token); err != nil {
		return err
	}
	c.Seen, err = readSeen(asker.r)
	return err
}

func (s *tcpSession) afterPeer(c *Call, token string) error {
	if _, err := fmt.Fprintf(s.conn, "%s %d %s\n", AskFirst, s.opts.Download, token); err != nil {
		return err
	}
	if err := receiveAll(c, s.r, s.opts.Download); err != nil {
		return err
	}
	n, err := writePattern(s.conn, s.opts.Size)
	c.BytesSent = n
	if err != nil {
		return err
	}
	return s.conn.CloseWrite()
}
