// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// goroutinesIn counts the goroutines whose stack shows a function of that name.
func goroutinesIn(name string) int {
	buf := make([]byte, 4<<20)
	n := 0
	for _, g := range bytes.Split(buf[:runtime.Stack(buf, true)], []byte("\n\n")) {
		if bytes.Contains(g, []byte(name+"(")) {
			n++
		}
	}
	return n
}

// TestOneGoroutinePerTunnel checks design decision 9: in steady state each end has one goroutine per tunnel that does not rest,
// and two per connection (its read loop and its flusher); a drainer lives only while a queue does.
func TestOneGoroutinePerTunnel(t *testing.T) {
	const tunnels = 40
	sc, pc := serverConfig(), clientConfig()
	sc.RestAfter, pc.RestAfter = time.Hour, time.Hour
	srv, hop := startServer(t, sc)
	p := startPool(t, pc)
	app := serveApps(t, echoByte)
	var all []*tunnel
	for range tunnels {
		tun := openTunnel(t, p, hop, app)
		pingPong(t, tun.TCPConn)
		all = append(all, tun)
	}
	counts := func() [4]int {
		return [4]int{goroutinesIn("(*stream).relay"), goroutinesIn("(*stream).drain"),
			goroutinesIn("(*conn).readLoop"), goroutinesIn("(*conn).flushLoop")}
	}
	eventually(t, "one goroutine per tunnel and end", func() bool { return counts() == [4]int{2 * tunnels, 0, 2, 2} })
	for _, tun := range all {
		tun.CloseWrite()
		tun.end(t)
	}
	eventually(t, "none is left after the tunnels", func() bool { return counts() == [4]int{0, 0, 2, 2} })
	if n := srv.Conns()[0].Streams; n != 0 {
		t.Errorf("%d streams left", n)
	}
}

// TestFlushWithoutProgressClosesConnection: a peer that takes no byte for PingTimeout is given up, though no PING is
// due; a write deadline must not hit a single stream, as crypto/tls is unusable after it.
func TestFlushWithoutProgressClosesConnection(t *testing.T) {
	stop := make(chan struct{})
	hop := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		peer := newRawPeer(c, pki().server)
		peer.handshakeServer(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
		peer.fr.WriteWindowUpdate(0, 1<<31-1-floorWindow)
		peer.respond(peer.expect(http2.FrameHeaders).StreamID, "200", false)
		<-stop // reads no more
	})
	t.Cleanup(func() { close(stop) })
	cfg := clientConfig()
	cfg.PingInterval, cfg.PingTimeout = time.Hour, 100*time.Millisecond
	p := startPool(t, cfg)
	tun := openTunnel(t, p, hop, netip.MustParseAddrPort("192.0.2.1:1"))
	for {
		if _, err := tun.Write(make([]byte, 64<<10)); err != nil {
			break
		}
	}
	r := tun.end(t)
	var ce *ConnectionError
	if !errors.As(r.Err, &ce) || !r.Reset {
		t.Errorf("result %+v", r)
	}
}

// TestBudgetRestrainsConnections: above the process's budget a connection's window shrinks to the protocol's least, new
// streams are refused, and both are as before once the applications read.
func TestBudgetRestrainsConnections(t *testing.T) {
	sc, pc := serverConfig(), clientConfig()
	sc.Budget = NewBudget(100 << 10)
	srv, hop := startServer(t, sc)
	p := startPool(t, pc)
	resume := make(chan struct{})
	release := sync.OnceFunc(func() { close(resume) })
	stalled := serveStalled(t, resume)
	t.Cleanup(release)
	keeper := openTunnel(t, p, hop, serveApps(t, batches))
	var asleep []*tunnel
	flooded := make(chan struct{}, 16)
	for range 16 { // before any of them uses up the budget, above which none would be opened
		asleep = append(asleep, openTunnel(t, p, hop, stalled))
	}
	for _, tun := range asleep {
		go func() {
			tun.Write(make([]byte, 24<<20/min(scale, 3)))
			tun.CloseWrite()
			flooded <- struct{}{}
		}()
	}
	client, server := onlyConn(t, p, srv)
	eventually(t, "the budget is used up", func() bool { return sc.Budget.exceeded() })
	eventually(t, "the connection's window shrinks", func() bool {
		server.control.mu.Lock()
		defer server.control.mu.Unlock()
		return server.control.recv.window <= floorWindow
	})
	moveAll(t, []*tunnel{keeper}, 4<<20) // a neighbour still gets through
	var re *ResetError
	if _, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: "x:1"}); !errors.As(err, &re) || re.Code != http2.ErrCodeRefusedStream {
		t.Errorf("a new stream above the budget: %v", err)
	}
	release()
	for range asleep {
		<-flooded
	}
	for _, tun := range asleep {
		tun.end(t)
	}
	moveAll(t, []*tunnel{keeper}, 4<<20)
	checkWindows(t, client, server)
	if n := sc.Budget.Used(); n != 0 {
		t.Errorf("budget still holds %d bytes", n)
	}
}
