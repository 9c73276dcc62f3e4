// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/relay"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
)

// tunnel is an application's end of a tunnel through a pool and a server.
type tunnel struct {
	*net.TCPConn
	result chan relay.Result
}

// openTunnel opens a tunnel to app through the server at hop.
func openTunnel(t testing.TB, p *Pool, hop, app netip.AddrPort) *tunnel {
	t.Helper()
	ctx := testContext(t)
	s, err := p.Open(ctx, Key{Addr: hop}, &Request{Authority: app.String()})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return relayTo(t, s)
}

func relayTo(t testing.TB, s *Stream) *tunnel {
	t.Helper()
	near, far := tcpPair(t)
	tun := &tunnel{near, make(chan relay.Result, 1)}
	ctx, cancel := context.WithCancel(context.Background()) // not testContext: its end would cut what runs, and look like a fault
	t.Cleanup(cancel)
	go func() { tun.result <- s.Relay(ctx, far) }()
	return tun
}

// end returns the relay's result.
func (tun *tunnel) end(t testing.TB) relay.Result {
	t.Helper()
	select {
	case r := <-tun.result:
		return r
	case <-time.After(budget):
		t.Fatal("the relay did not end")
		return relay.Result{}
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestTunnelCarriesBytesBothWays(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	p := startPool(t, clientConfig())
	app := serveApps(t, echo)
	for _, size := range []int{0, 1, 8, chunkMax - 1, chunkMax, chunkMax + 1, 1 << 20, 16 << 20} {
		tun := openTunnel(t, p, hop, app)
		want := randomBytes(size)
		go func() {
			tun.Write(want)
			tun.CloseWrite()
		}()
		got, err := io.ReadAll(tun)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: got %d back, equal %v, err %v", size, len(got), bytes.Equal(got, want), err)
		}
		wantResult := relay.Result{BytesUp: uint64(size), BytesDown: uint64(size)}
		if diff := cmp.Diff(wantResult, tun.end(t)); diff != "" {
			t.Errorf("%d bytes: result (-want +got):\n%s", size, diff)
		}
	}
	if n := len(p.Conns()); n != 1 {
		t.Errorf("%d connections for one key, want 1", n)
	}
}

func TestHalfClose(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	p := startPool(t, clientConfig())
	t.Run("client first", func(t *testing.T) {
		app := serveApps(t, func(c *net.TCPConn) {
			defer c.Close()
			io.Copy(io.Discard, c) // to the end, and only then
			c.Write([]byte("answer"))
		})
		tun := openTunnel(t, p, hop, app)
		tun.Write([]byte("question"))
		tun.CloseWrite()
		got, err := io.ReadAll(tun)
		if string(got) != "answer" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if diff := cmp.Diff(relay.Result{BytesUp: 8, BytesDown: 6}, tun.end(t)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("server first", func(t *testing.T) {
		got := make(chan string, 1)
		app := serveApps(t, func(c *net.TCPConn) {
			defer c.Close()
			c.Write([]byte("banner"))
			c.CloseWrite()
			b, _ := io.ReadAll(c)
			got <- string(b)
		})
		tun := openTunnel(t, p, hop, app)
		banner, err := io.ReadAll(tun)
		if string(banner) != "banner" || err != nil {
			t.Errorf("got %q, %v", banner, err)
		}
		tun.Write([]byte("late"))
		tun.CloseWrite()
		if s := <-got; s != "late" {
			t.Errorf("server got %q after its own end", s)
		}
		if r := tun.end(t); r.Err != nil || r.Reset {
			t.Errorf("result %+v", r)
		}
	})
}

// TestResets checks decision "Endings": an application's reset crosses the tunnel as a reset, both ways (RFC 9113 §8.5).
func TestResets(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	p := startPool(t, clientConfig())
	t.Run("by the client's application", func(t *testing.T) {
		seen := make(chan error, 1)
		app := serveApps(t, func(c *net.TCPConn) {
			defer c.Close()
			_, err := io.Copy(io.Discard, c)
			seen <- err
		})
		tun := openTunnel(t, p, hop, app)
		tun.Write([]byte("x"))
		tun.SetLinger(0)
		tun.Close()
		if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("server's application saw %v, want a reset", err)
		}
		if r := tun.end(t); !r.Reset || r.Err != nil {
			t.Errorf("result %+v, want a reset that counts as normal", r)
		}
	})
	t.Run("by the server's application", func(t *testing.T) {
		app := serveApps(t, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
			c.Close()
		})
		tun := openTunnel(t, p, hop, app)
		tun.Write([]byte("x"))
		if _, err := io.Copy(io.Discard, tun); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client's application saw %v, want a reset", err)
		}
		if r := tun.end(t); !r.Reset || r.Err != nil {
			t.Errorf("result %+v, want a reset that counts as normal", r)
		}
	})
}

// TestRemoteResetCodes checks what a peer's RST_STREAM does to the application's socket.
func TestRemoteResetCodes(t *testing.T) {
	tests := []struct {
		code      Code
		wantReset bool // the application sees a reset, not an end
		wantErr   bool
	}{
		{http2.ErrCodeNo, false, false},
		{http2.ErrCodeCancel, false, false},
		{http2.ErrCodeConnect, true, false},
		{http2.ErrCodeInternal, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.code.String(), func(t *testing.T) {
			cfg := serverConfig()
			cut := make(chan *Inbound, 1)
			cfg.Handler = func(ctx context.Context, in *Inbound) {
				_, far := tcpPair(t)
				cut <- in
				in.Accept(ctx, far)
			}
			_, hop := startServer(t, cfg)
			p := startPool(t, clientConfig())
			tun := openTunnel(t, p, hop, netip.MustParseAddrPort("192.0.2.1:80"))
			(<-cut).Cut(tt.code)
			_, err := io.Copy(io.Discard, tun)
			if gotReset := errors.Is(err, syscall.ECONNRESET); gotReset != tt.wantReset {
				t.Errorf("application saw %v, want reset %v", err, tt.wantReset)
			}
			r := tun.end(t)
			var re *relay.Error
			if !r.Reset || (r.Err != nil) != tt.wantErr || (tt.wantErr && (!errors.As(r.Err, &re) || re.Side != relay.Upstream || re.Op != "reset")) {
				t.Errorf("result %+v", r)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	cfg := serverConfig()
	cfg.Handler = func(ctx context.Context, in *Inbound) {
		switch in.Authority {
		case "401":
			in.Refuse(401, Header{"x-reason", "rbac"})
		case "400":
			in.Refuse(400)
		default:
			in.Refuse(503)
		}
	}
	srv, hop := startServer(t, cfg)
	p := startPool(t, clientConfig())
	for authority, want := range map[string]*StatusError{
		"400": {Code: 400, Header: []Header{}},
		"401": {Code: 401, Header: []Header{{"x-reason", "rbac"}}},
		"503": {Code: 503, Header: []Header{}},
	} {
		_, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: authority})
		var got *StatusError
		if !errors.As(err, &got) {
			t.Fatalf("%s: %v", authority, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", authority, diff)
		}
	}
	eventually(t, "no stream is left after refusals", func() bool {
		c, s := p.Conns(), srv.Conns()
		return len(c) == 1 && c[0].Streams == 0 && len(s) == 1 && s[0].Streams == 0
	})
}

func TestHeadersArrive(t *testing.T) {
	cfg := serverConfig()
	got := make(chan *Inbound, 1)
	cfg.Handler = func(ctx context.Context, in *Inbound) {
		got <- in
		near, far := tcpPair(t)
		near.Close()
		in.Accept(ctx, far, Header{"baggage", "k8s.pod.name=a"})
	}
	_, hop := startServer(t, cfg)
	p := startPool(t, clientConfig())
	sent := []Header{{"baggage", "k8s.namespace.name=ns"}, {"x-long", string(bytes.Repeat([]byte("v"), 12<<10))},
		{"forwarded", `for="10.0.0.1:1"`}, {"traceparent", "00-1-2-00"}}
	s, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: "[fd00::1]:80", Header: sent[:2], Once: sent[2:]})
	if err != nil {
		t.Fatal(err)
	}
	in := <-got
	if diff := cmp.Diff(sent, in.Header); diff != "" {
		t.Errorf("request headers (-want +got):\n%s", diff)
	}
	if in.Method != "CONNECT" || in.Authority != "[fd00::1]:80" || in.Get("traceparent") != "00-1-2-00" {
		t.Errorf("got %s %s", in.Method, in.Authority)
	}
	if diff := cmp.Diff([]Header{{"baggage", "k8s.pod.name=a"}}, s.Header()); diff != "" {
		t.Errorf("response headers (-want +got):\n%s", diff)
	}
	if in.Remote != s.LocalAddr() || in.Local != s.RemoteAddr() || len(in.TLS.PeerCertificates) != 1 || len(s.TLS().PeerCertificates) != 1 {
		t.Errorf("addresses or peer certificates differ")
	}
	tun := relayTo(t, s)
	tun.CloseWrite()
	tun.end(t)
}

// TestAcceptComesAfterConnect checks that 200 waits for the handler (design decision 2).
func TestAcceptComesAfterConnect(t *testing.T) {
	cfg := serverConfig()
	proceed := make(chan struct{})
	cfg.Handler = func(ctx context.Context, in *Inbound) {
		<-proceed
		connectHandler(ctx, in)
	}
	_, hop := startServer(t, cfg)
	p := startPool(t, clientConfig())
	app := serveApps(t, echo)
	opened := make(chan *Stream, 1)
	ctx := testContext(t)
	go func() {
		s, err := p.Open(ctx, Key{Addr: hop}, &Request{Authority: app.String()})
		if err != nil {
			t.Error(err)
		}
		opened <- s
	}()
	eventually(t, "a stream waits", func() bool { c := p.Conns(); return len(c) == 1 && c[0].Streams == 1 })
	select {
	case <-opened:
		t.Fatal("opened before the handler accepted")
	default:
	}
	close(proceed)
	(<-opened).Reset(http2.ErrCodeCancel)
}

func TestContextCutsTunnel(t *testing.T) {
	handlerCtx := make(chan context.Context, 1)
	cfg := serverConfig()
	cfg.Handler = func(ctx context.Context, in *Inbound) {
		handlerCtx <- ctx
		connectHandler(ctx, in)
	}
	_, hop := startServer(t, cfg)
	p := startPool(t, clientConfig())
	s, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: serveApps(t, echo).String()})
	if err != nil {
		t.Fatal(err)
	}
	near, far := tcpPair(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	result := make(chan relay.Result, 1)
	go func() { result <- s.Relay(ctx, far) }()
	reason := errors.New("policy changed")
	cancel(reason)
	if r := <-result; !errors.Is(r.Err, reason) || !r.Reset {
		t.Errorf("result %+v", r)
	}
	if _, err := io.Copy(io.Discard, near); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("application saw %v", err)
	}
	select {
	case <-(<-handlerCtx).Done():
	case <-time.After(budget):
		t.Error("the handler's context lives on after the stream's reset")
	}
}
