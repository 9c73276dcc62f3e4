// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// onlyConn returns the one connection of a pool and the one of a server.
func onlyConn(t testing.TB, p *Pool, s *Server) (client, server *conn) {
	t.Helper()
	p.mu.Lock()
	for _, e := range p.entries {
		for _, c := range e.conns {
			client = c
		}
	}
	p.mu.Unlock()
	for _, c := range s.snapshot() {
		server = c
	}
	if client == nil || server == nil {
		t.Fatal("no connection")
	}
	return client, server
}

// checkWindows waits until nothing is under way between two ends and compares what one may send with what the other
// allows, and with the full window.
func checkWindows(t testing.TB, sender, receiver *conn) {
	t.Helper()
	var sendWindow int64
	var r recvFlow
	ok := func() bool {
		sender.mu.Lock()
		sendWindow = sender.send.window
		sender.mu.Unlock()
		receiver.control.mu.Lock()
		r = receiver.control.recv
		receiver.control.mu.Unlock()
		return sendWindow == r.window && r.window+r.credit+r.withheld == int64(receiver.cfg.ConnWindow) && r.queued == 0
	}
	for deadline := time.Now().Add(budget); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("window leaked: sender may send %d, receiver %+v, full %d", sendWindow, r, receiver.cfg.ConnWindow)
		}
	}
}

// TestResetsLeakNoWindow: 10 000 streams are reset from all four ends with data in flight both ways, then one stream
// runs at full speed on the same connection.
func TestResetsLeakNoWindow(t *testing.T) {
	const workers, each = 40, 250 / scale
	sc, pc := serverConfig(), clientConfig()
	sc.Budget, pc.Budget = NewBudget(64<<20), NewBudget(64<<20)
	srv, hop := startServer(t, sc)
	p := startPool(t, pc)
	noise := serveApps(t, func(c *net.TCPConn) {
		b := make([]byte, 48<<10)
		io.ReadFull(c, b[:16<<10]) // leaves some unread, so that closing resets
		c.Write(b)
		c.SetLinger(0)
		c.Close()
	})
	opener := openTunnel(t, p, hop, serveApps(t, batches)) // keeps the connection and proves it afterwards
	payload := make([]byte, 64<<10)
	ctx := testContext(t)
	var g sync.WaitGroup
	var done atomic.Int32
	for w := range workers {
		g.Go(func() {
			for i := range each {
				s, err := p.Open(ctx, Key{Addr: hop}, &Request{Authority: noise.String()})
				if err != nil {
					t.Errorf("Open: %v", err)
					return
				}
				near, far := tcpPair(t)
				var relayed sync.WaitGroup
				rctx, cut := context.WithCancel(ctx)
				relayed.Go(func() { s.Relay(rctx, far) })
				near.Write(payload[:16<<10+(w*i*997)%(48<<10)])
				switch i % 3 {
				case 0: // our application resets
					near.SetLinger(0)
					near.Close()
				case 1: // the relay is cut
					cut()
				case 2: // the other application resets
					io.Copy(io.Discard, near)
				}
				near.Close()
				relayed.Wait()
				cut()
				done.Add(1)
			}
		})
	}
	g.Wait()
	if n := done.Load(); n != workers*each {
		t.Fatalf("%d resets done", n)
	}
	if n := len(p.Conns()); n != 1 {
		t.Errorf("%d connections, want all streams on one", n)
	}
	client, server := onlyConn(t, p, srv)
	eventually(t, "only the first stream is left", func() bool {
		_, a := client.isDraining()
		_, b := server.isDraining()
		return a == 1 && b == 1
	})
	checkWindows(t, client, server)
	checkWindows(t, server, client)
	if sc.Budget.Used() != 0 || pc.Budget.Used() != 0 {
		t.Errorf("budget holds %d and %d bytes", sc.Budget.Used(), pc.Budget.Used())
	}
	before := moveAll(t, []*tunnel{opener}, 64<<20/scale)
	_, fresh := startServer(t, sc)
	after := moveAll(t, []*tunnel{openTunnel(t, p, fresh, serveApps(t, batches))}, 64<<20/scale)
	t.Logf("64 MiB: %v on the connection with resets, %v on a fresh one", before, after)
}

// TestBothSidesBlockedRecover: both applications send without reading, so that both ends of the connection block on
// sending; then both read, and everything arrives.
func TestBothSidesBlockedRecover(t *testing.T) {
	pause := 300 * time.Millisecond
	if *slow {
		pause = 5 * time.Second
	}
	srv, hop := startServer(t, serverConfig())
	p := startPool(t, clientConfig())
	const size, streams = 48 << 20 / min(scale, 2), 4 // far above what windows and socket buffers hold
	resume := make(chan struct{})
	exchange := func(c *net.TCPConn) error {
		var g sync.WaitGroup
		g.Go(func() {
			io.CopyN(onlyWriter{c}, zeros{}, size)
			c.CloseWrite()
		})
		<-resume
		n, err := io.Copy(onlyWriter{io.Discard}, onlyReader{c})
		g.Wait()
		c.Close()
		if err == nil && n != size {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	app := serveApps(t, func(c *net.TCPConn) {
		if err := exchange(c); err != nil {
			t.Errorf("server's application: %v", err)
		}
	})
	var g sync.WaitGroup
	var tunnels []*tunnel
	for range streams {
		tun := openTunnel(t, p, hop, app)
		tunnels = append(tunnels, tun)
		g.Go(func() {
			if err := exchange(tun.TCPConn); err != nil {
				t.Errorf("client's application: %v", err)
			}
		})
	}
	<-time.After(pause)
	close(resume)
	g.Wait()
	for _, tun := range tunnels {
		if r := tun.end(t); r.Err != nil || r.Reset || r.BytesUp != size || r.BytesDown != size {
			t.Errorf("result %+v", r)
		}
	}
	client, server := onlyConn(t, p, srv)
	checkWindows(t, client, server)
	checkWindows(t, server, client)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// TestQueueIsDeliveredAfterEnd: END_STREAM and a later RST_STREAM(NO_ERROR) do not discard what an application has not
// taken yet.
func TestQueueIsDeliveredAfterEnd(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	resume := make(chan struct{})
	got := make(chan int64, 1)
	app := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		<-resume
		n, _ := io.Copy(io.Discard, c)
		got <- n
	})
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
	peer.connect(1, app.String())
	sent := make(chan struct{})
	var total int64
	// Send until the stream's window is used up for good: the kernel's buffers and the queue are full then.
	go func() {
		defer close(sent)
		window, connWindow := 16<<10, floorWindow
		for quiet := false; !quiet; {
			for window > 0 && connWindow > 0 {
				n := min(window, connWindow, 16<<10)
				peer.fr.WriteData(1, false, make([]byte, n))
				window, connWindow, total = window-n, connWindow-n, total+int64(n)
			}
			peer.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			f, err := peer.next(http2.FrameWindowUpdate)
			if quiet = err != nil; quiet {
				break
			}
			if u := f.(*http2.WindowUpdateFrame); u.StreamID == 0 {
				connWindow += int(u.Increment)
			} else {
				window += int(u.Increment)
			}
		}
		peer.fr.WriteData(1, true, nil)
		peer.fr.WriteRSTStream(1, http2.ErrCodeNo)
	}()
	<-sent
	close(resume)
	if n := <-got; n != total {
		t.Errorf("application got %d of %d bytes", n, total)
	}
}

// TestCrashedPeerCutsStreams: when the connection breaks, every application sees a reset.
func TestCrashedPeerCutsStreams(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	var dialed *net.TCPConn
	cfg := clientConfig()
	dial := cfg.Dial
	cfg.Dial = func(ctx context.Context, k Key) (c *net.TCPConn, err error) {
		dialed, err = dial(ctx, k)
		return dialed, err
	}
	p := startPool(t, cfg)
	seen := make(chan error, 1)
	app := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		_, err := io.Copy(io.Discard, c)
		seen <- err
	})
	tun := openTunnel(t, p, hop, app)
	dialed.SetLinger(0)
	dialed.Close()
	if r := tun.end(t); r.Err == nil || !r.Reset {
		t.Errorf("result %+v", r)
	}
	if err := <-seen; err == nil {
		t.Error("the server's application saw a clean end")
	}
	eventually(t, "the pool forgot the connection", func() bool { return len(p.Conns()) == 0 })
}
