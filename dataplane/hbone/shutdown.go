// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"time"
)

func (s *Server) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// exit is the end of a connection.
func (s *Server) exit(a *arrival) {
	s.mu.Lock()
	delete(s.pending, a.t)
	s.serving--
	s.checkEmpty()
	s.mu.Unlock()
	a.done()
}

// checkEmpty is called with s.mu held.
func (s *Server) checkEmpty() {
	if s.stopping && s.serving == 0 {
		select {
		case <-s.empty:
		default:
			close(s.empty)
		}
	}
}

// Shutdown closes the listeners, announces the end to every peer (GOAWAY in two steps), waits for the streams until
// ctx ends, then cuts. It returns when every connection is gone, with ctx's cause if it had to cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	s.checkEmpty()
	for l := range s.listeners {
		l.Close()
	}
	s.mu.Unlock()
	for _, c := range s.snapshot() {
		c.drain()
	}
	select {
	case <-s.empty:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for t := range s.pending {
		t.Close()
	}
	waited := s.clear()
	s.mu.Unlock()
	for _, a := range waited {
		s.end(a, ErrClosed)
	}
	for _, c := range s.snapshot() {
		c.cut("drain time is over")
	}
	<-s.empty
	return context.Cause(ctx)
}

func (s *Server) stopWithin(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	defer cancel()
	_ = s.Shutdown(ctx) // what was left is cut then
}

func (s *Server) snapshot() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// Conns lists the live connections.
func (s *Server) Conns() []ConnInfo {
	var all []ConnInfo
	for _, c := range s.snapshot() {
		all = append(all, c.info())
	}
	return all
}

// Cut ends the connections that which picks at once, and every stream on them.
func (s *Server) Cut(why string, which func(ConnInfo) bool) {
	s.mu.Lock()
	var cut []*conn
	for c := range s.conns {
		if which(c.info()) {
			cut = append(cut, c)
		}
	}
	s.mu.Unlock()
	for _, c := range cut {
		c.cut(why)
	}
}
