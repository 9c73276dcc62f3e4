// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
)

// TestStreamsAreSpread: with Spread, further connections are made without a stream waiting for them once those that there are
// carry enough, and streams go to the one with the fewest. Without it all share one. What the key carries says how many are
// enough.
func TestStreamsAreSpread(t *testing.T) {
	for name, tt := range map[string]struct {
		spread, bulk int
		carry        int // bytes at a time, before
		want, most   int // connections, and streams on one of them
	}{
		"all on one":            {carry: 1, want: 1, most: 40},
		"small messages":        {spread: 3, bulk: 6, carry: 1, want: 3, most: 16},
		"bulk":                  {spread: 3, bulk: 6, carry: 4 << 20, want: 6, most: 7},
		"bulk, like everything": {spread: 3, carry: 4 << 20, want: 3, most: 14},
		"nothing yet":           {spread: 3, bulk: 6, want: 6, most: 7},
	} {
		t.Run(name, func(t *testing.T) {
			_, hop := startServer(t, serverConfig())
			cfg := clientConfig()
			cfg.Spread, cfg.SpreadBulk = tt.spread, tt.bulk
			p := startPool(t, cfg)
			if tt.carry > 0 {
				carry(t, openTunnel(t, p, hop, serveApps(t, echo)), tt.carry)
			}
			app := hold(t)
			const opened = 40
			for range opened {
				s, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: app.String()})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Reset(http2.ErrCodeCancel) })
				eventually(t, "no connection is being made", func() bool {
					p.mu.Lock()
					defer p.mu.Unlock()
					return p.entries[Key{Addr: hop}].attempt == nil
				})
			}
			conns := p.Conns()
			if len(conns) != tt.want {
				t.Errorf("%d connections, want %d", len(conns), tt.want)
			}
			for _, c := range conns {
				if c.Streams > tt.most {
					t.Errorf("%d of %d streams on one of %d connections, want %d at most", c.Streams, opened, len(conns), tt.most)
				}
			}
		})
	}
}

// carry moves a few messages of n bytes there and back, and ends the tunnel.
func carry(t *testing.T, tun *tunnel, n int) {
	sent := make(chan error, 1)
	for range lookAfter {
		go func() {
			_, err := tun.Write(make([]byte, n))
			sent <- err
		}()
		if _, err := io.ReadFull(tun, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	tun.CloseWrite()
	tun.end(t)
}

// TestBurstIsFollowedByConnections: streams that all came before the first of the others stood call for as many as streams that
// came one by one.
func TestBurstIsFollowedByConnections(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	cfg := clientConfig()
	cfg.Spread = 4
	stand, dials := make(chan struct{}), atomic.Int32{}
	dial := cfg.Dial
	cfg.Dial = func(ctx context.Context, k Key) (*net.TCPConn, error) {
		if dials.Add(1) > 1 {
			<-stand
		}
		return dial(ctx, k)
	}
	p := startPool(t, cfg)
	app := hold(t)
	for range cfg.Spread * together {
		s, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: app.String()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Reset(http2.ErrCodeCancel) })
	}
	if n := len(p.Conns()); n != 1 {
		t.Errorf("%d connections while others are on their way, want 1", n)
	}
	close(stand)
	eventually(t, "the other connections", func() bool { return len(p.Conns()) == cfg.Spread })
	if n := dials.Load(); n != int32(cfg.Spread) {
		t.Errorf("%d connections made, want %d", n, cfg.Spread)
	}
}
