// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// ServeConn answers the queries of one TCP connection, which origin says where its client meant to make (invalid: unknown),
// until the client ends it, is idle for too long, or quit is closed: then those that were read are still answered. The end
// of ctx cuts them short. c stays the caller's to close.
func (s *Server) ServeConn(ctx context.Context, c net.Conn, origin netip.AddrPort, quit <-chan struct{}) {
	if s.conns.Add(1) > maxConns {
		s.conns.Add(-1)
		return
	}
	defer s.conns.Add(-1)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	over := make(chan struct{})
	defer close(over)
	waiting.Go(func() {
		select {
		case <-quit:
			_ = c.SetReadDeadline(time.Unix(1, 0))
		case <-over:
		}
	})
	var writing sync.Mutex
	send := func(b []byte) {
		writing.Lock()
		defer writing.Unlock()
		if len(b) == 0 {
			return
		}
		_ = c.SetWriteDeadline(time.Now().Add(s.cfg.Idle))
		if err := writeFramed(c, b); err != nil {
			_ = c.SetReadDeadline(time.Unix(1, 0)) // a client that takes no answer asks no more
		}
	}
	pipeline := make(chan struct{}, maxPipelined)
	for s.idle(c, quit) {
		raw, err := readFramed(c)
		if err != nil {
			return
		}
		pipeline <- struct{}{} // each is given back within the time for an answer
		q := &query{raw: raw, tcp: true, origin: origin}
		if answer, done := s.quick(q, nil); done {
			send(answer)
			<-pipeline
			continue
		}
		if !s.enter() {
			send(s.refuse(q, errBusy))
			<-pipeline
			continue
		}
		waiting.Go(func() {
			defer func() { s.leave(); <-pipeline }()
			if transfer(q) {
				s.relay(ctx, q, send)
				return
			}
			send(s.slow(ctx, q))
		})
	}
}

// idle gives the client its time for the next query, unless the connection is to end.
func (s *Server) idle(c net.Conn, quit <-chan struct{}) bool {
	if c.SetReadDeadline(time.Now().Add(s.cfg.Idle)) != nil {
		return false
	}
	select {
	case <-quit: // closed before the deadline was set, perhaps
		return false
	default:
		return true
	}
}

// transfer reports whether a query may have many messages for an answer.
func transfer(q *query) bool {
	return len(q.msg.Question) == 1 && (q.msg.Question[0].Qtype == dns.TypeAXFR || q.msg.Question[0].Qtype == dns.TypeIXFR)
}

// relay passes a zone transfer on, message by message, until the server ends it or falls silent.
func (s *Server) relay(ctx context.Context, q *query, send func([]byte)) {
	start := time.Now()
	q.event.Forwarded = true
	to := s.origin(q)
	c, err := s.cfg.Transport.DialTCP(ctx, to)
	if err == nil {
		defer c.Close()
		defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
		err = writeFramed(c, q.raw)
	}
	for n := 0; err == nil; n++ {
		_ = c.SetReadDeadline(time.Now().Add(s.cfg.Attempt))
		var b []byte
		if b, err = readFramed(c); err != nil && n > 0 {
			q.event.Upstream, q.event.Took = to, time.Since(start)
			s.observe(q)
			return
		}
		if err == nil && !q.answers(b, q.msg.Id) && n == 0 {
			err = errNoAnswer
		}
		if err == nil {
			send(b)
		}
	}
	send(s.refuse(q, err))
}
