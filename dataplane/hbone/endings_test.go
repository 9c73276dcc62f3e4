// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/relay"
	"golang.org/x/net/http2"
)

// heldConn keeps back what is written while it holds, so that it arrives in one segment.
type heldConn struct {
	net.Conn
	mu   sync.Mutex
	hold bool
	buf  bytes.Buffer
}

func (h *heldConn) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hold {
		return h.buf.Write(b)
	}
	return h.Conn.Write(b)
}

// atOnce writes in one call what f writes in many.
func (h *heldConn) atOnce(t testing.TB, f func()) {
	t.Helper()
	h.set(true)
	f()
	h.set(false)
	h.Conn.SetDeadline(time.Now().Add(budget)) // crypto/tls set one when it closed
	if _, err := h.buf.WriteTo(h.Conn); err != nil {
		t.Fatal(err)
	}
}

func (h *heldConn) set(hold bool) {
	h.mu.Lock()
	h.hold = hold
	h.mu.Unlock()
}

// heldClient is rawClient whose writes can be held back.
func heldClient(t testing.TB, hop netip.AddrPort) (*rawPeer, *heldConn) {
	t.Helper()
	c, err := net.Dial("tcp", hop.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	h := &heldConn{Conn: c}
	p := &rawPeer{Conn: tls.Client(h, pki().client)}
	p.SetDeadline(time.Now().Add(budget))
	initRawPeer(p, p.Conn)
	io.WriteString(p.Conn, http2.ClientPreface)
	p.fr.WriteSettings()
	p.fr.WriteSettingsAck()
	return p, h
}

// received is what an application got until its end.
type received struct {
	data []byte
	err  error
}

// endedApp ends its own direction and, once started, reads the other to its end.
func endedApp(t testing.TB, start <-chan struct{}) (netip.AddrPort, <-chan received) {
	got := make(chan received, 1)
	return serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		c.SetReadBuffer(64 << 10)
		c.CloseWrite()
		<-start
		b, err := io.ReadAll(c)
		got <- received{b, err}
	}), got
}

// TestFramesInTheLastSegmentCount: DATA that shares a segment with GOAWAY and the connection's end is delivered.
func TestFramesInTheLastSegmentCount(t *testing.T) {
	start := make(chan struct{})
	close(start)
	app, got := endedApp(t, start)
	_, hop := startServer(t, serverConfig())
	peer, held := heldClient(t, hop)
	peer.connect(1, app.String())
	peer.expect(http2.FrameHeaders)
	peer.expect(http2.FrameData)
	held.atOnce(t, func() {
		peer.fr.WriteData(1, true, []byte("the last words"))
		peer.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		peer.Conn.CloseWrite()
	})
	if r := <-got; string(r.data) != "the last words" || r.err != nil {
		t.Errorf("application got %q, %v", r.data, r.err)
	}
}

// TestQuestionsAfterOurEnd: a peer that asks for answers until it sees our end gets every byte that was sent before it.
func TestQuestionsAfterOurEnd(t *testing.T) {
	const size = 8 << 20
	app := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(io.Discard, c)
		c.Write(make([]byte, size))
	})
	srv, hop := startServer(t, serverConfig())
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	peer.Conn.NetConn().(*net.TCPConn).SetReadBuffer(128 << 10)
	peer.fr.WriteWindowUpdate(0, 1<<30)
	peer.connect(1, app.String())
	peer.expect(http2.FrameHeaders)
	peer.fr.WriteData(1, true, nil)
	ctx := testContext(t)
	done := make(chan error, 1)
	go func() { done <- srv.Shutdown(ctx) }()
	got, end, asks := 0, false, false
	for frames := 0; ; frames++ {
		f, err := peer.next(http2.FrameData, http2.FrameGoAway)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		if d, ok := f.(*http2.DataFrame); ok {
			got, end = got+len(d.Data()), d.StreamEnded()
		} else {
			asks = true // DATA may come before it
		}
		if asks && frames%4 == 0 { // on each would be too many
			peer.fr.WritePing(false, [8]byte{1}) // the last ones come after close_notify was written
		}
	}
	if got != size || !end {
		t.Errorf("got %d of %d bytes, END_STREAM %v", got, size, end)
	}
	peer.Close()
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestPeerEndsBeforeDelivery: a stream that was received whole is delivered, however long after its connection's end.
func TestPeerEndsBeforeDelivery(t *testing.T) {
	const size = 7 << 20
	cfg := serverConfig()
	cfg.StartWindow, cfg.StreamWindow, cfg.ConnWindow, cfg.Budget = 8<<20, 8<<20, 16<<20, NewBudget(64<<20)
	start := make(chan struct{})
	app, got := endedApp(t, start)
	srv, hop := startServer(t, cfg)
	peer, _ := heldClient(t, hop)
	peer.connect(1, app.String())
	peer.expect(http2.FrameHeaders)
	peer.expect(http2.FrameData)
	for sent := 0; sent < size; sent += 16 << 10 {
		peer.fr.WriteData(1, sent+16<<10 == size, make([]byte, 16<<10))
	}
	peer.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	peer.Conn.CloseWrite()
	if _, err := peer.next(); !errors.Is(err, io.EOF) { // the server closes without waiting for the application
		t.Errorf("connection ended with %v", err)
	}
	if n := len(srv.Conns()); n != 1 {
		t.Errorf("%d connections while a stream of one is being delivered", n)
	}
	close(start)
	if r := <-got; len(r.data) != size || r.err != nil {
		t.Errorf("application got %d of %d bytes, %v", len(r.data), size, r.err)
	}
	eventually(t, "nothing is left", func() bool { return len(srv.Conns()) == 0 })
}

// TestPeerEndsBeforeOurEnd: what the peer sent whole is delivered even if it does not want an answer, and the handler
// may take its time to connect.
func TestPeerEndsBeforeOurEnd(t *testing.T) {
	cfg := serverConfig()
	proceed, result := make(chan struct{}), make(chan relay.Result, 1)
	cfg.Handler = func(ctx context.Context, in *Inbound) {
		<-proceed
		var d net.Dialer
		up, err := d.DialContext(ctx, "tcp", in.Authority)
		if err != nil {
			t.Errorf("handler: %v", err)
			in.Refuse(503)
			return
		}
		result <- in.Accept(ctx, up.(*net.TCPConn))
	}
	got := make(chan received, 1)
	app := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		b, err := io.ReadAll(c)
		got <- received{b, err}
	})
	_, hop := startServer(t, cfg)
	peer, _ := heldClient(t, hop)
	peer.connect(1, app.String())
	peer.fr.WriteData(1, true, []byte("fire and forget"))
	peer.Conn.CloseWrite()
	for _, err := peer.next(); err == nil; _, err = peer.next() {
	}
	close(proceed)
	if r := <-got; string(r.data) != "fire and forget" || r.err != nil {
		t.Errorf("application got %q, %v", r.data, r.err)
	}
	if r := <-result; !r.Reset || r.BytesUp != 15 {
		t.Errorf("result %+v", r)
	}
}

// TestDrainingServerLosesNothing: a server that ends with its last stream leaves the client to deliver that at leisure.
func TestDrainingServerLosesNothing(t *testing.T) {
	const size = 12 << 20
	app := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(io.Discard, c)
		c.Write(make([]byte, size))
	})
	srv, hop := startServer(t, serverConfig())
	p := startPool(t, clientConfig())
	tun := openTunnel(t, p, hop, app)
	tun.SetReadBuffer(64 << 10)
	tun.CloseWrite()
	ctx := testContext(t)
	done := make(chan error, 1)
	go func() { done <- srv.Shutdown(ctx) }()
	first, err := io.CopyN(io.Discard, tun, size/2)
	if err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, 16<<10)
	got := int(first)
	for err == nil {
		var n int
		n, err = tun.Read(rest)
		got += n
		<-time.After(100 * time.Microsecond) // a slow application, whose queue outlives the connection
	}
	if got != size || !errors.Is(err, io.EOF) {
		t.Errorf("application got %d of %d bytes, %v", got, size, err)
	}
	if r := tun.end(t); r.Err != nil || r.Reset {
		t.Errorf("result %+v", r)
	}
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestCutReachesOutlivingStreams: a stream that outlives its connection still ends when the server or pool is cut.
func TestCutReachesOutlivingStreams(t *testing.T) {
	start := make(chan struct{})
	app, got := endedApp(t, start)
	cfg := serverConfig()
	cfg.StartWindow, cfg.StreamWindow, cfg.ConnWindow, cfg.Budget = 8<<20, 8<<20, 16<<20, NewBudget(64<<20)
	srv, hop := startServer(t, cfg)
	peer, _ := heldClient(t, hop)
	peer.connect(1, app.String())
	peer.expect(http2.FrameHeaders)
	peer.expect(http2.FrameData)
	const size = 7 << 20
	for sent := 0; sent < size; sent += 16 << 10 {
		peer.fr.WriteData(1, sent+16<<10 == size, make([]byte, 16<<10))
	}
	peer.Conn.CloseWrite()
	for _, err := peer.next(); err == nil; _, err = peer.next() {
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := srv.Shutdown(ctx); err == nil {
		t.Error("Shutdown had nothing to cut")
	}
	close(start)
	if r := <-got; r.err == nil {
		t.Errorf("application got %d bytes and a clean end", len(r.data))
	}
	if used := cfg.Budget.Used(); used != 0 {
		t.Errorf("%d bytes are still counted as queued", used)
	}
}
