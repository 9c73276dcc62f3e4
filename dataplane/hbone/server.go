// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"
)

// ServerConfig configures a Server. TLS and Handler are required.
type ServerConfig struct {
	Config
	// TLS returns the configuration for one incoming connection. The server works on a copy.
	TLS func(ctx context.Context) (*tls.Config, error)
	// Handler answers one request, in a goroutine of its own: it must call Accept or Refuse. ctx ends when the peer
	// resets the stream, when the connection dies before the stream was received whole, and when the server cuts it.
	Handler func(ctx context.Context, in *Inbound)
	// DrainTimeout is how long Serve lets streams run on once its context has ended; 0 means 5 s.
	DrainTimeout time.Duration
	// OnHandshakeError, if set, hears of connections that never came to carry a stream.
	OnHandshakeError func(remote, local netip.AddrPort, err error)
}

// Server answers CONNECT requests on connections that it is given. All methods may be called concurrently.
type Server struct {
	cfg ServerConfig

	mu        sync.Mutex
	conns     map[*conn]struct{}
	listeners map[net.Listener]struct{}
	pending   map[*net.TCPConn]struct{} // before or in their handshake
	lots      map[netip.Addr]*lot
	stopping  bool
	serving   int           // connections, from accept to their last handler
	empty     chan struct{} // closed when stopping and serving is 0
}

// NewServer returns a server.
func NewServer(cfg ServerConfig) *Server {
	cfg.Config = cfg.Config.withDefaults(200, 64<<10)
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = 5 * time.Second
	}
	return &Server{
		cfg:   cfg,
		conns: make(map[*conn]struct{}), listeners: make(map[net.Listener]struct{}),
		pending: make(map[*net.TCPConn]struct{}), lots: make(map[netip.Addr]*lot), empty: make(chan struct{}),
	}
}

// Serve accepts connections from l until ctx ends or l fails, then closes l. After the end of ctx it drains all of the
// server's connections for up to DrainTimeout. It returns when those that it accepted are gone; nil after a stop.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if !s.listen(l) {
		return ErrClosed
	}
	defer s.unlisten(l)
	var group sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { s.stopWithin(ctx, s.cfg.DrainTimeout) })
	err := s.accept(ctx, l, &group)
	group.Wait()
	if !stop() {
		<-s.empty
	}
	return err
}

// accept runs Serve's loop.
func (s *Server) accept(ctx context.Context, l net.Listener, group *sync.WaitGroup) error {
	handlerCtx := context.WithoutCancel(ctx)
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			t, ok := nc.(*net.TCPConn)
			if !ok {
				nc.Close()
				return fmt.Errorf("accept: %T is not a TCP connection", nc)
			}
			group.Add(1)
			s.Start(handlerCtx, t, group.Done)
		case s.isStopping():
			return nil
		case outOfResources(err):
			select { // the kernel keeps the connection until there is a descriptor for it
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		default:
			return fmt.Errorf("accept: %w", err)
		}
	}
}

func outOfResources(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// serve serves a connection to its end.
func (s *Server) serve(a *arrival) {
	ctx := a.ctx
	c, handlers, err := s.establish(a)
	s.settled(a.addr)
	if err != nil {
		_ = s.cfg.Guard.pace(ctx, a.addr, toPart, partGap)
		s.end(a, err)
		return
	}
	defer s.exit(a)
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.drain()
		timer := time.NewTimer(s.cfg.DrainTimeout)
		defer timer.Stop()
		select {
		case <-over:
		case <-timer.C:
			c.cut("drain time is over")
		}
	})
	_ = c.run() // how it ended is its streams' to say
	if c.hasOffended() {
		s.cfg.Guard.offend(a.addr)
	}
	handlers.Wait()
	stop()
	close(over)
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// establish does the handshake and starts the connection.
func (s *Server) establish(a *arrival) (*conn, *sync.WaitGroup, error) {
	ctx, t := a.ctx, a.t
	hctx, cancel := context.WithDeadline(ctx, a.end)
	defer cancel()
	cfg, err := s.cfg.TLS(hctx) // before a place is taken: it may wait for who the server is, or for its certificate
	if err != nil {
		return nil, nil, fmt.Errorf("tls configuration: %w", err)
	}
	leave, err := s.cfg.Guard.admit(hctx, a.addr, a.end.Add(-s.cfg.HandshakeTimeout))
	if err != nil {
		return nil, nil, err
	}
	if gone(t) {
		leave(false)
		return nil, nil, fmt.Errorf("%v: %w", StageTLS, io.EOF)
	}
	rec, state, err := handshake(hctx, t, cfg, false)
	leave(err != nil && !errors.Is(err, io.EOF))
	if err != nil {
		return nil, nil, fmt.Errorf("%v: %w", StageTLS, err)
	}
	handlers := &sync.WaitGroup{}
	base, end := context.WithCancelCause(context.WithoutCancel(ctx))
	o := &served{onRequest: func(st *stream, f *http2.MetaHeadersFrame) error { return s.handle(base, handlers, st, f) }}
	c := newConn(s.cfg.Config, o, false, rec, &state)
	o.onGone = end
	c.start() // before Shutdown can find it
	s.mu.Lock()
	delete(s.pending, t)
	s.conns[c] = struct{}{}
	stopping := s.stopping
	s.mu.Unlock()
	if stopping {
		c.drain()
	}
	return c, handlers, nil
}

// served tells the server what happens on one of its connections.
type served struct {
	onRequest func(*stream, *http2.MetaHeadersFrame) error
	onGone    context.CancelCauseFunc
}

func (o *served) request(s *stream, f *http2.MetaHeadersFrame) error { return o.onRequest(s, f) }

func (o *served) changed(c *conn) {
	draining, active := c.isDraining()
	if draining && active == 0 {
		c.finish()
	}
	if c.isCut() {
		o.onGone(context.Canceled)
	}
}

// handle runs the handler for one request. An error ends the connection.
func (s *Server) handle(base context.Context, handlers *sync.WaitGroup, st *stream, f *http2.MetaHeadersFrame) error {
	in, wellFormed := newInbound(st, f)
	if !wellFormed {
		err := st.c.failFor(st, http2.ErrCodeProtocol)
		st.c.forget(st)
		return err
	}
	ctx, cancel := context.WithCancelCause(base)
	st.mu.Lock()
	st.onDeath = cancel
	if st.isDead() {
		cancel(st.err)
	}
	st.mu.Unlock()
	handlers.Add(1)
	in.end = func() {
		in.leave(endedBadly)
		cancel(nil)
		handlers.Done()
	}
	in.start = func() { go s.answer(ctx, in) }
	st.c.turns.enter(in)
	return nil
}

// answer runs the handler, unless the request was given up while it waited for its turn.
func (s *Server) answer(ctx context.Context, in *Inbound) {
	if st := in.s; st.isDead() {
		st.c.forget(st)
		in.end()
		return
	}
	s.cfg.Handler(ctx, in)
	switch {
	case in.outlives: // and may be over by now
		return
	case !in.answered:
		in.s.fail(http2.ErrCodeInternal, &ResetError{Code: http2.ErrCodeInternal})
		in.s.c.forget(in.s)
	}
	in.end()
}

func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) unlisten(l net.Listener) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
}
