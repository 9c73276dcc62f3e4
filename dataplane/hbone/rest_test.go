// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/relay"
)

// restSoon is a server and a pool whose tunnels rest after d, with handlers that return then.
func restSoon(t *testing.T, d time.Duration) (p *Pool, hop netip.AddrPort) {
	sc, pc := serverConfig(), clientConfig()
	sc.RestAfter, pc.RestAfter = d, d
	sc.Handler = func(ctx context.Context, in *Inbound) {
		var d net.Dialer
		up, err := d.DialContext(ctx, "tcp", in.Authority)
		if err != nil {
			in.Refuse(503)
			return
		}
		in.AcceptThen(ctx, up.(*net.TCPConn), func(relay.Result) {})
	}
	_, hop = startServer(t, sc)
	return startPool(t, pc), hop
}

// openResting opens a tunnel whose opener needs no goroutine either.
func openResting(t *testing.T, p *Pool, hop, app netip.AddrPort) (tun *tunnel, cut context.CancelCauseFunc) {
	s, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: app.String()})
	if err != nil {
		t.Fatal(err)
	}
	near, far := tcpPair(t)
	ctx, cut := context.WithCancelCause(context.Background())
	t.Cleanup(func() { cut(nil) })
	tun = &tunnel{near, make(chan relay.Result, 1)}
	go s.RelayThen(ctx, far, func(r relay.Result) { tun.result <- r })
	return tun, cut
}

func resting() int {
	watching.mu.Lock()
	defer watching.mu.Unlock()
	return len(watching.streams)
}

func carrying() int { return goroutinesIn("(*stream).goOn") }

// TestRestingTunnelsHaveNoGoroutine: neither end of a tunnel keeps one while its application says nothing, also if it has ended
// its half; the watch ends with the last tunnel.
func TestRestingTunnelsHaveNoGoroutine(t *testing.T) {
	const tunnels = 40
	p, hop := restSoon(t, 10*time.Millisecond)
	app := serveApps(t, echoByte)
	var all []*tunnel
	for range tunnels {
		tun, _ := openResting(t, p, hop, app)
		all = append(all, tun)
	}
	for range 3 {
		eventually(t, "all rest", func() bool { return resting() == 2*tunnels && carrying() == 0 })
		for _, tun := range all {
			pingPong(t, tun.TCPConn)
		}
	}
	half, _ := openResting(t, p, hop, serveApps(t, func(c *net.TCPConn) {
		_, _ = io.Copy(io.Discard, c)
		<-t.Context().Done() // has nothing to say yet
		c.Close()
	}))
	half.CloseWrite()
	eventually(t, "a half-closed one rests too", func() bool { return resting() == 2*tunnels+1 && carrying() == 0 })
	for _, tun := range all {
		tun.CloseWrite()
		if r := tun.end(t); r.Reset || r.Err != nil {
			t.Errorf("result %+v", r)
		}
	}
	eventually(t, "only the half-closed one is left", func() bool { return resting() == 1 && carrying() == 0 })
	half.Close()
}

// TestRestingTunnelsEnd: whatever may end a tunnel ends one that rests.
func TestRestingTunnelsEnd(t *testing.T) {
	reset := func(c *net.TCPConn) {
		c.SetLinger(0)
		c.Close()
	}
	reason := errors.New("policy changed")
	type ends struct {
		p           *Pool
		client, app *net.TCPConn
		cut         context.CancelCauseFunc
	}
	for name, tt := range map[string]struct {
		end         func(e ends)
		client, app error // what each of them sees then
		result      string
	}{
		"client's end":    {end: func(e ends) { e.client.CloseWrite() }},
		"server's end":    {end: func(e ends) { e.app.CloseWrite() }},
		"client's reset":  {end: func(e ends) { reset(e.client) }, client: net.ErrClosed, app: syscall.ECONNRESET},
		"server's reset":  {end: func(e ends) { reset(e.app) }, client: syscall.ECONNRESET, app: net.ErrClosed},
		"cut":             {end: func(e ends) { e.cut(reason) }, client: syscall.ECONNRESET, result: reason.Error()},
		"connection lost": {end: func(e ends) { e.p.Close() }, client: syscall.ECONNRESET, app: syscall.ECONNRESET, result: "pool closed"},
	} {
		t.Run(name, func(t *testing.T) {
			p, hop := restSoon(t, time.Millisecond)
			apps := make(chan *net.TCPConn, 1)
			tun, cut := openResting(t, p, hop, serveApps(t, func(c *net.TCPConn) { apps <- c }))
			app := <-apps
			t.Cleanup(func() { app.Close() })
			eventually(t, "both ends rest", func() bool { return resting() == 2 && carrying() == 0 })
			tt.end(ends{p, tun.TCPConn, app, cut})
			seen := make(chan error, 2)
			for c, want := range map[*net.TCPConn]error{tun.TCPConn: tt.client, app: tt.app} {
				go func() {
					_, err := io.Copy(io.Discard, c)
					if c.CloseWrite(); !errors.Is(err, want) {
						seen <- fmt.Errorf("%v sees %w, want %w", c.RemoteAddr(), err, want)
						return
					}
					seen <- nil
				}()
				if tt.client == nil && tt.app == nil {
					c.CloseWrite() // the other half
				}
			}
			for range 2 {
				if err := <-seen; err != nil {
					t.Error(err)
				}
			}
			if r := tun.end(t); r.Reset != (tt.client != nil) || !strings.Contains(fmt.Sprint(r.Err), tt.result) {
				t.Errorf("result %+v, want error %q", r, tt.result)
			}
			eventually(t, "nothing is left", func() bool { return resting() == 0 && carrying() == 0 })
		})
	}
}

// TestRestingAtAnyTime: tunnels that rest whenever they can lose nothing.
func TestRestingAtAnyTime(t *testing.T) {
	p, hop := restSoon(t, time.Microsecond)
	app := serveApps(t, echo)
	done := make(chan error, 8)
	for range cap(done) {
		tun, _ := openResting(t, p, hop, app)
		go func() {
			buf := make([]byte, 4<<10)
			for i := range 2000 / scale {
				n := 1 + i%len(buf)
				if _, err := tun.Write(buf[:n]); err != nil {
					done <- err
					return
				}
				if _, err := io.ReadFull(tun, buf[:n]); err != nil {
					done <- err
					return
				}
				if i%3 == 0 {
					runtime.Gosched()
				}
			}
			tun.CloseWrite()
			_, err := io.Copy(io.Discard, tun)
			done <- err
		}()
	}
	for range cap(done) {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(budget):
			t.Fatal("a tunnel does not go on")
		}
	}
	eventually(t, "nothing is left", func() bool { return resting() == 0 && carrying() == 0 })
}
