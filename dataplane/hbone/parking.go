// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// startedPerAddr is how many connections of one address to one server are on their way to HTTP/2 at a time. Those beyond it wait as
// an element of a list, without a goroutine, a timer or a configuration of their own: what thousands that come or give up together
// cost others is the work for each, until all of it is done. It is more than have a handshake at a time, of all servers (Guard).
const startedPerAddr = 2 * handshakesPerAddr

// lot are the connections of one address that carry no HTTP/2 yet.
type lot struct {
	started int
	waiting []*arrival // in the order of their ends
	timer   *time.Timer
}

// arrival is a connection from its accept on.
type arrival struct {
	ctx  context.Context // of its server's handlers
	t    *net.TCPConn
	addr netip.Addr
	end  time.Time // of its handshake
	done func()
}

// Start takes one connection in and returns: from then on Shutdown ends it, too. done is called when the connection has ended and its
// handlers have returned. The end of ctx drains it for up to DrainTimeout. OnHandshakeError, or the handlers, hear how it went.
func (s *Server) Start(ctx context.Context, t *net.TCPConn, done func()) {
	a := &arrival{ctx, t, addrPort(t.RemoteAddr()).Addr(), time.Now().Add(s.cfg.HandshakeTimeout), done}
	if !s.admit(a) {
		t.Close()
		done()
	}
}

// admit has a connection begin or wait. It reports false if the server takes none any more.
func (s *Server) admit(a *arrival) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.serving++
	s.pending[a.t] = struct{}{}
	l := s.lots[a.addr]
	if l == nil {
		l = &lot{}
		s.lots[a.addr] = l
	}
	if l.started < startedPerAddr {
		l.started++
		go s.serve(a)
		return true
	}
	if l.waiting = append(l.waiting, a); len(l.waiting) == 1 {
		s.expect(l, a)
	}
	return true
}

// expect has l looked at when a, its first, has waited too long. s.mu is held.
func (s *Server) expect(l *lot, a *arrival) {
	if l.timer != nil {
		l.timer.Stop()
	}
	l.timer = time.AfterFunc(time.Until(a.end), func() { s.expire(l) })
}

// settled starts the next connection of an address in the place of one whose handshake is over.
func (s *Server) settled(addr netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lots[addr]
	l.started--
	s.advance(addr, l)
}

// advance starts connections that wait, while there is room and time for the first. s.mu is held.
func (s *Server) advance(addr netip.Addr, l *lot) {
	for l.started < startedPerAddr {
		a := l.next()
		if a == nil || time.Until(a.end) < s.cfg.HandshakeTimeout/admitLeft { // it is about to expire: see Guard.admit
			break
		}
		l.waiting = l.waiting[1:]
		l.started++
		go s.serve(a)
	}
	s.tidy(addr, l)
}

func (l *lot) next() *arrival {
	if len(l.waiting) == 0 {
		return nil
	}
	return l.waiting[0]
}

// tidy forgets a lot that is empty. s.mu is held.
func (s *Server) tidy(addr netip.Addr, l *lot) {
	if l.next() == nil && l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if l.started == 0 && l.next() == nil && s.lots[addr] == l {
		delete(s.lots, addr)
	}
}

// expire ends connections that have waited too long, one after the other.
func (s *Server) expire(l *lot) {
	for {
		s.mu.Lock()
		a := l.next()
		if a == nil || time.Until(a.end) > 0 {
			if a != nil {
				s.expect(l, a)
			}
			s.mu.Unlock()
			return
		}
		l.waiting = l.waiting[1:]
		s.advance(a.addr, l)
		s.mu.Unlock()
		_ = s.cfg.Guard.pace(a.ctx, a.addr, toPart, partGap)
		s.end(a, fmt.Errorf("wait for %d other connections of %v: %w", startedPerAddr, a.addr, context.DeadlineExceeded))
	}
}

// end ends a connection that came to nothing.
func (s *Server) end(a *arrival, err error) {
	remote, local := addrPort(a.t.RemoteAddr()), addrPort(a.t.LocalAddr())
	a.t.Close()
	if s.cfg.OnHandshakeError != nil {
		s.cfg.OnHandshakeError(remote, local, err)
	}
	s.exit(a)
}

// clear takes out all that wait. s.mu is held.
func (s *Server) clear() (waited []*arrival) {
	for addr, l := range s.lots {
		waited = append(waited, l.waiting...)
		l.waiting = nil
		s.tidy(addr, l)
	}
	return waited
}
