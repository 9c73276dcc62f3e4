// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
)

// TestStreamsAreSpread: with Spread, further connections are made without a stream waiting for them, and streams go to
// the one with the fewest. Without it all share one.
func TestStreamsAreSpread(t *testing.T) {
	for _, spread := range []int{0, 3} {
		_, hop := startServer(t, serverConfig())
		cfg := clientConfig()
		cfg.Spread = spread
		p := startPool(t, cfg)
		app := hold(t)
		ctx := testContext(t)
		open := func() {
			s, err := p.Open(ctx, Key{Addr: hop}, &Request{Authority: app.String()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Reset(http2.ErrCodeCancel) })
		}
		const opened = 30
		want := max(spread, 1)
		for i := range opened {
			open()
			n := min(want, (i+1)/(spreadFrom+1)+1)
			eventually(t, "the next connection", func() bool { return len(p.Conns()) == n })
		}
		conns := p.Conns()
		if len(conns) != want {
			t.Errorf("spread %d: %d connections, want %d", spread, len(conns), want)
		}
		for _, c := range conns {
			if c.Streams < opened/want-1 || c.Streams > opened/want+1 {
				t.Errorf("spread %d: %d of %d streams on one of %d connections", spread, c.Streams, opened, len(conns))
			}
		}
	}
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
	for range cfg.Spread * (spreadFrom + 1) {
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
