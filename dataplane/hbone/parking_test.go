// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// silent opens connections from an address that say nothing.
func silent(t *testing.T, from string, to netip.AddrPort, n int) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	for range n {
		c, err := d.Dial("tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// handshakes is what a TLS configuration was asked for and what failed.
type handshakes struct{ asked, failed atomic.Int64 }

func counted(timeout time.Duration) (ServerConfig, *handshakes) {
	h := &handshakes{}
	cfg := serverConfig()
	inner := cfg.TLS
	cfg.HandshakeTimeout = timeout
	cfg.TLS = func(ctx context.Context) (*tls.Config, error) {
		h.asked.Add(1)
		return inner(ctx)
	}
	cfg.OnHandshakeError = func(_, _ netip.AddrPort, _ error) { h.failed.Add(1) }
	return cfg, h
}

// Of thousands that come together few are more than an element of a list, and they keep nobody else waiting. All of them end in time.
func TestConnectionsWaitWithoutGoroutines(t *testing.T) {
	const more = 200
	cfg, h := counted(2 * time.Second)
	before := runtime.NumGoroutine()
	s, hop := startServer(t, cfg)
	silent(t, "127.0.0.3", hop, startedPerAddr+more)
	eventually(t, "all arrive", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.serving == startedPerAddr+more
	})
	eventually(t, "those that may begin", func() bool { return h.asked.Load() == startedPerAddr })
	if n := runtime.NumGoroutine() - before; n > 3*startedPerAddr {
		t.Errorf("%d connections have %d goroutines", startedPerAddr+more, n)
	}
	other := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.4")}}
	c, err := other.Dial("tcp", hop.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "another address begins at once", func() bool { return h.asked.Load() == startedPerAddr+1 })
	eventually(t, "all of them end", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return h.failed.Load() >= startedPerAddr+more && s.lots[netip.MustParseAddr("127.0.0.3")] == nil
	})
}

// Who waits for what an address has done waits from when it came, not from its turn: otherwise the wait of each would be that of all
// behind it, and a gateway's honest client would not come to its handshake.
func TestThoseThatGaveUpCostTheNextOneNoTurn(t *testing.T) {
	cfg, h := counted(10 * time.Second)
	var late atomic.Int64
	cfg.OnHandshakeError = func(_, _ netip.AddrPort, err error) {
		if errors.Is(err, context.DeadlineExceeded) {
			late.Add(1)
		}
		h.failed.Add(1)
	}
	cfg.Guard = NewGuard()
	for range 2 * handshakesPerAddr {
		cfg.Guard.offend(netip.MustParseAddr("127.0.0.3"))
	}
	_, hop := startServer(t, cfg)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.3")}}
	const rounds = 6 // of offenceWaitMax each would be more than the time that a handshake has
	for range rounds * startedPerAddr {
		c, err := d.Dial("tcp", hop.String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	eventually(t, "all of them end", func() bool { return h.failed.Load() == rounds*startedPerAddr })
	if n := late.Load(); n > 0 {
		t.Errorf("%d did not have their turn in time", n)
	}
}

// A connection that is about to expire does not begin.
func TestConnectionsWithoutTimeStayInTheList(t *testing.T) {
	cfg, _ := counted(10 * time.Second)
	s := NewServer(cfg)
	addr := netip.MustParseAddr("127.0.0.3")
	l := &lot{waiting: []*arrival{{addr: addr, end: time.Now().Add(cfg.HandshakeTimeout / (2 * admitLeft))}}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.advance(addr, l); l.started != 0 || len(l.waiting) != 1 {
		t.Errorf("%d began, %d wait", l.started, len(l.waiting))
	}
}

// Whoever waits has the place of one whose handshake is over.
func TestConnectionsThatWaitFollow(t *testing.T) {
	cfg, h := counted(10 * time.Second)
	_, hop := startServer(t, cfg)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.3")}}
	first, err := d.Dial("tcp", hop.String())
	if err != nil {
		t.Fatal(err)
	}
	silent(t, "127.0.0.3", hop, startedPerAddr)
	eventually(t, "all but one begin", func() bool { return h.asked.Load() == startedPerAddr })
	first.Close()
	eventually(t, "the last begins", func() bool { return h.asked.Load() == startedPerAddr+1 })
}

func TestShutdownEndsWhoWaits(t *testing.T) {
	cfg, h := counted(time.Minute)
	s := NewServer(cfg)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	silent(t, "127.0.0.3", netip.MustParseAddrPort(l.Addr().String()), startedPerAddr+10)
	eventually(t, "all arrive", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.serving == startedPerAddr+10
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it had to cut: %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if n := h.failed.Load(); n != startedPerAddr+10 {
		t.Errorf("%d of %d connections were told of", n, startedPerAddr+10)
	}
}
