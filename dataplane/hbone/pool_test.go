// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// hold accepts tunnels to an application that waits for the client to end.
func hold(t testing.TB) netip.AddrPort {
	return serveApps(t, echo)
}

func TestConnectIsSingleFlight(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	cfg := clientConfig()
	var dials atomic.Int32
	dial := cfg.Dial
	cfg.Dial = func(ctx context.Context, k Key) (*net.TCPConn, error) {
		dials.Add(1)
		return dial(ctx, k)
	}
	p := startPool(t, cfg)
	app := hold(t)
	ctx := testContext(t)
	var g sync.WaitGroup
	for range 50 {
		g.Go(func() {
			s, err := p.Open(ctx, Key{Addr: hop}, &Request{Authority: app.String()})
			if err != nil {
				t.Error(err)
				return
			}
			s.Reset(http2.ErrCodeCancel)
		})
	}
	g.Wait()
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connects for 50 streams, want 1", n)
	}
}

// TestKeysDoNotShare checks the pool key of protocols A1.7.
func TestKeysDoNotShare(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	p := startPool(t, clientConfig())
	app := hold(t)
	keys := []Key{
		{Addr: hop},
		{Addr: hop, Source: "spiffe://a"},
		{Addr: hop, Destinations: "spiffe://b"},
		{Addr: hop, SourceIP: netip.MustParseAddr("127.0.0.2")},
	}
	for range 2 {
		for _, k := range keys {
			s, err := p.Open(testContext(t), k, &Request{Authority: app.String()})
			if err != nil {
				t.Fatal(err)
			}
			s.Reset(http2.ErrCodeCancel)
		}
	}
	if n := len(p.Conns()); n != len(keys) {
		t.Errorf("%d connections for %d keys", n, len(keys))
	}
}

func TestFullConnectionGetsACompanion(t *testing.T) {
	tests := map[string]struct {
		limits [2]uint32
		conns  int
	}{
		"3 by the client": {[2]uint32{3, 0}, 3}, "3 by the server": {[2]uint32{0, 3}, 3},
		"1 by the client": {[2]uint32{1, 0}, 7}, "1 by the server": {[2]uint32{0, 1}, 7},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pc, sc := clientConfig(), serverConfig()
			pc.MaxStreams, sc.MaxStreams = tt.limits[0], tt.limits[1]
			_, hop := startServer(t, sc)
			p := startPool(t, pc)
			app := hold(t)
			var streams []*Stream
			for range 7 {
				s, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: app.String()})
				if err != nil {
					t.Fatal(err)
				}
				streams = append(streams, s)
			}
			if n := len(p.Conns()); n != tt.conns {
				t.Errorf("%d connections for 7 streams, want %d", n, tt.conns)
			}
			for _, s := range streams {
				s.Reset(http2.ErrCodeCancel)
			}
		})
	}
}

// TestRefusedStreamIsOpenedOnceMore: a server whose limit the client could not know yet refuses; the stream goes to a
// new connection (design decision 10).
func TestRefusedStreamIsOpenedOnceMore(t *testing.T) {
	budget := NewBudget(1)
	sc := serverConfig()
	sc.Budget = budget
	var conns atomic.Int32
	tlsConfig := sc.TLS
	sc.TLS = func(ctx context.Context) (*tls.Config, error) {
		if conns.Add(1) == 2 {
			budget.used.Store(0) // memory is there again
		}
		return tlsConfig(ctx)
	}
	_, hop := startServer(t, sc)
	p := startPool(t, clientConfig())
	app := hold(t)
	budget.used.Store(2)
	s, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: app.String()})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	s.Reset(http2.ErrCodeCancel)
	if n := conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	budget.used.Store(2)
	_, err = p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: app.String()})
	var re *ResetError
	if !errors.As(err, &re) || re.Code != http2.ErrCodeRefusedStream || !re.Remote {
		t.Errorf("after two refusals: %v", err)
	}
	if n := conns.Load(); n != 2 {
		t.Errorf("%d connections after one more stream that may be opened twice, want the same 2", n)
	}
	budget.used.Store(0)
}

func TestConnectErrors(t *testing.T) {
	closed := listen(t)
	gone := addrOf(closed)
	closed.Close()
	silent := listen(t) // accepts in the kernel, never speaks
	defer silent.Close()
	noH2 := serveApps(t, func(c *net.TCPConn) {
		cfg := pki().server.Clone()
		cfg.NextProtos = nil
		tc := tls.Server(c, cfg)
		tc.Handshake()
		tc.Close()
	})
	h2Ends := serveApps(t, func(c *net.TCPConn) {
		tc := tls.Server(c, pki().server)
		tc.Handshake()
		tc.Close()
	})
	tests := []struct {
		name    string
		addr    netip.AddrPort
		stage   Stage
		is      error
		timeout bool
	}{
		{"nobody listens", gone, StageTCP, syscall.ECONNREFUSED, false},
		{"silent peer", addrOf(silent), StageTLS, context.DeadlineExceeded, true},
		{"no h2", noH2, StageTLS, nil, false},
		{"ends before SETTINGS", h2Ends, StageH2, nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := clientConfig()
			if tt.timeout {
				cfg.HandshakeTimeout = 500 * time.Millisecond
			}
			p := startPool(t, cfg)
			_, err := p.Open(testContext(t), Key{Addr: tt.addr}, &Request{Authority: "x:1"})
			var ce *ConnectError
			if !errors.As(err, &ce) || ce.Stage != tt.stage || ce.Timeout != tt.timeout || (tt.is != nil && !errors.Is(err, tt.is)) {
				t.Errorf("got %#v: %v", err, err)
			}
			eventually(t, "no connection is left", func() bool { return len(p.Conns()) == 0 })
		})
	}
}

// TestUselessConnections: a peer whose connections take no stream is given up, and leaves no heap of connections.
func TestUselessConnections(t *testing.T) {
	for name, refuse := range map[string]func(*rawPeer){
		"no streams allowed": func(p *rawPeer) {
			p.handshakeServer(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
		},
		"ends at once": func(p *rawPeer) {
			p.handshakeServer()
			p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var dials atomic.Int32
			hop := serveApps(t, func(c *net.TCPConn) {
				defer c.Close()
				dials.Add(1)
				peer := newRawPeer(c, pki().server)
				refuse(peer)
				for {
					f, err := peer.next(http2.FrameHeaders) // until the client closes
					if err != nil {
						return
					}
					peer.fr.WriteRSTStream(f.Header().StreamID, http2.ErrCodeRefusedStream)
				}
			})
			p := startPool(t, clientConfig())
			_, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: "x:1"})
			var ce *ConnectError
			var re *ResetError // the stream was sent before the client knew better
			refused := errors.As(err, &ce) && ce.Stage == StageH2
			if !refused && !errors.As(err, &re) && !errors.Is(err, errUnprocessed) {
				t.Errorf("Open: %v", err)
			}
			if n := dials.Load(); n > 2*maxUnsent {
				t.Errorf("%d connections for one stream", n)
			}
			eventually(t, "no useless connection is kept", func() bool {
				for _, c := range p.Conns() {
					if c.Draining {
						return false
					}
				}
				return true
			})
		})
	}
}

// TestAbandonedConnectIsCancelled: when nobody waits for an attempt any more, it ends.
func TestAbandonedConnectIsCancelled(t *testing.T) {
	cfg := clientConfig()
	cancelled := make(chan error, 1)
	cfg.Dial = func(ctx context.Context, k Key) (*net.TCPConn, error) {
		<-ctx.Done()
		cancelled <- ctx.Err()
		return nil, ctx.Err()
	}
	p := startPool(t, cfg)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := p.Open(ctx, Key{}, &Request{})
	var ce *ConnectError
	if !errors.As(err, &ce) || ce.Stage != StageTCP || !ce.Timeout {
		t.Errorf("Open: %v", err)
	}
	select {
	case <-cancelled:
	case <-time.After(budget):
		t.Error("the attempt goes on")
	}
}

func TestIdleConnectionIsReleased(t *testing.T) {
	srv, hop := startServer(t, serverConfig())
	cfg := clientConfig()
	cfg.IdleFor = 30 * time.Millisecond
	p := startPool(t, cfg)
	tun := openTunnel(t, p, hop, hold(t))
	tun.Write([]byte("x"))
	if c := p.Conns(); len(c) != 1 || c[0].Streams != 1 {
		t.Fatalf("connections: %+v", c)
	}
	tun.CloseWrite()
	tun.end(t)
	eventually(t, "the idle connection is gone on both sides", func() bool {
		return len(p.Conns()) == 0 && len(srv.Conns()) == 0
	})
}

// TestUnansweredPingClosesConnection: a peer that vanished is noticed by PING alone, and every stream learns of it.
func TestUnansweredPingClosesConnection(t *testing.T) {
	cfg := clientConfig()
	cfg.PingInterval, cfg.PingTimeout = 20*time.Millisecond, 60*time.Millisecond
	p := startPool(t, cfg)
	hop := serveApps(t, func(c *net.TCPConn) {
		peer := newRawPeer(c, pki().server)
		defer c.Close()
		peer.handshakeServer()
		id := peer.expect(http2.FrameHeaders).StreamID
		peer.respond(id, "200", false)
		for { // reads, but answers no PING
			if _, err := peer.fr.ReadFrame(); err != nil {
				return
			}
		}
	})
	tun := openTunnel(t, p, hop, netip.MustParseAddrPort("192.0.2.1:1"))
	r := tun.end(t)
	var ce *ConnectionError
	if !errors.As(r.Err, &ce) || ce.Code != http2.ErrCodeNo || !r.Reset {
		t.Errorf("result %+v", r)
	}
	eventually(t, "the connection is gone", func() bool { return len(p.Conns()) == 0 })
}

func TestPoolDrainWaitsForStreams(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	p := NewPool(clientConfig())
	done := make(chan error, 1)
	ctx := testContext(t)
	go func() { done <- p.Run(ctx) }()
	app := hold(t)
	tun := openTunnel(t, p, hop, app)
	p.Drain()
	if _, err := p.Open(ctx, Key{Addr: hop}, &Request{Authority: app.String()}); !errors.Is(err, ErrClosed) {
		t.Errorf("Open while draining: %v", err)
	}
	tun.Write([]byte("still here"))
	b := make([]byte, 10)
	if _, err := tun.Read(b); err != nil {
		t.Errorf("stream was cut: %v", err)
	}
	select {
	case <-done:
		t.Error("Run returned before the last stream ended")
	default:
	}
	tun.CloseWrite()
	if r := tun.end(t); r.Err != nil || r.Reset {
		t.Errorf("result %+v", r)
	}
	select {
	case <-done:
	case <-time.After(budget):
		t.Error("Run does not return after the last stream")
	}
}
