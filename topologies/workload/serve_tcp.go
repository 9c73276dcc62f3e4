// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// reportWait is how long AskReport waits for a connection that is still being read.
const reportWait = 10 * time.Second

// maxReports bounds what is kept for AskReport; the oldest goes first.
const maxReports = 1024

func (s *Server) serveTCP(ctx context.Context, l listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		s.group.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			defer func() { _ = c.Close() }()
			s.debug(l.protocol, s.tcpConn(ctx, c.(*net.TCPConn), l.protocol))
		})
	}
}

func (s *Server) tcpConn(ctx context.Context, c *net.TCPConn, protocol string) error {
	seen := s.seen(protocol, c.RemoteAddr(), c.LocalAddr())
	if protocol == TCPServerFirst {
		if err := seen.writeLine(c); err != nil {
			return err
		}
		return echo(c, c)
	}
	r := bufio.NewReaderSize(c, maxQuestion)
	q, err := readQuestion(r)
	if err != nil {
		return err
	}
	switch q.verb {
	case AskSeen:
		if err := seen.writeLine(c); err != nil {
			return err
		}
	case AskTail:
		return tail(c, r, q.n, seen)
	case AskFirst:
		return s.first(c, r, q, seen)
	case AskReset:
		return reset(c, q.n)
	case AskWatch:
		if err := seen.writeLine(c); err != nil {
			return err
		}
		s.watch(ctx, r, q.token, seen)
		return nil
	case AskReport:
		rep, err := s.report.wait(ctx, q.token)
		if err != nil {
			return err
		}
		return rep.writeLine(c)
	}
	return echo(c, r)
}

func tail(c *net.TCPConn, r io.Reader, n int64, seen Seen) error {
	got := newCounter()
	if _, err := io.Copy(got, r); err != nil {
		return err
	}
	seen.Bytes, seen.SHA256 = got.n, got.sum()
	if err := seen.writeLine(c); err != nil {
		return err
	}
	if _, err := writePattern(c, n); err != nil {
		return err
	}
	return c.CloseWrite()
}

func (s *Server) first(c *net.TCPConn, r io.Reader, q question, seen Seen) error {
	if _, err := writePattern(c, q.n); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got := newCounter()
	if _, err := io.Copy(got, r); err != nil {
		return err
	}
	seen.Bytes, seen.SHA256 = got.n, got.sum()
	s.report.put(q.token, seen)
	return nil
}

// reset discards what either side has not read yet (tcp(7), SO_LINGER of zero).
func reset(c *net.TCPConn, n int64) error {
	if _, err := writePattern(c, n); err != nil {
		return err
	}
	if err := c.SetLinger(0); err != nil {
		return err
	}
	return c.Close()
}

// watch tells an end from a reset.
func (s *Server) watch(ctx context.Context, r io.Reader, token string, seen Seen) {
	got := newCounter()
	_, err := io.Copy(got, r)
	seen.Bytes, seen.SHA256, seen.Ended = got.n, got.sum(), ClassEOF
	if err != nil {
		seen.Ended = classify(ctx, err)
	}
	s.report.put(token, seen)
}

// reports keeps what was seen on connections that could not be told any more.
type reports struct {
	mu      *sync.Mutex
	byToken map[string]Seen
	order   []string
	changed chan struct{} // closed and replaced at every put
}

func newReports() reports {
	return reports{mu: &sync.Mutex{}, byToken: map[string]Seen{}, changed: make(chan struct{})}
}

func (r *reports) put(token string, seen Seen) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.byToken[token]; !ok {
		r.order = append(r.order, token)
	}
	r.byToken[token] = seen
	if len(r.order) > maxReports {
		delete(r.byToken, r.order[0])
		r.order = r.order[1:]
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *reports) wait(ctx context.Context, token string) (Seen, error) {
	ctx, cancel := context.WithTimeout(ctx, reportWait)
	defer cancel()
	for {
		r.mu.Lock()
		seen, ok := r.byToken[token]
		changed := r.changed
		r.mu.Unlock()
		if ok {
			return seen, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Seen{}, fmt.Errorf("report %s: %w", token, ctx.Err())
		}
	}
}
