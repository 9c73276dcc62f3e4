// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// A connection is made for a stream, which on a busy machine may come later than a short IdleFor ends: three of those in
// a row failed a call.
func TestAFreshConnectionWaitsForItsStream(t *testing.T) {
	since := time.Now()
	c := &conn{client: true, nextID: firstID, idleFor: time.Millisecond, idleSince: since}
	if got := c.idleUntil().Sub(since); got != firstUse {
		t.Errorf("unused: ends after %v, want %v", got, firstUse)
	}
	c.nextID += 2
	if got := c.idleUntil().Sub(since); got != c.idleFor {
		t.Errorf("used: ends after %v, want %v", got, c.idleFor)
	}
	c.nextID, c.idleFor = firstID, time.Minute
	if got := c.idleUntil().Sub(since); got != time.Minute {
		t.Errorf("unused, long: ends after %v, want a minute", got)
	}
}

// TestSlowPathIsNotGivenUp: on a slow path the answer to a PING may take longer than PingTimeout, behind what the peer
// sends. As long as that comes the peer is there; the answer is owed once nothing comes any more.
func TestSlowPathIsNotGivenUp(t *testing.T) {
	const lateness = 3 // PingTimeouts
	cfg := clientConfig()
	cfg.PingInterval, cfg.PingTimeout = 20*time.Millisecond, time.Second
	p := startPool(t, cfg)
	var sent atomic.Int64
	hop := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		peer := newRawPeer(c, pki().server)
		peer.handshakeServer()
		id := peer.expect(http2.FrameHeaders).StreamID
		peer.respond(id, "200", false)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(lateness * cfg.PingTimeout); time.Now().Before(end); <-tick.C {
			if peer.fr.WriteData(id, false, []byte("x")) == nil {
				sent.Add(1)
			}
		}
		_, _ = io.Copy(io.Discard, peer.Conn) // and answers no PING
	})
	start := time.Now()
	tun := openTunnel(t, p, hop, netip.MustParseAddrPort("192.0.2.1:1"))
	got, _ := io.Copy(io.Discard, tun)
	if lasted := time.Since(start); lasted < lateness*cfg.PingTimeout {
		t.Errorf("given up after %v", lasted)
	}
	var ce *ConnectionError
	if r := tun.end(t); !errors.As(r.Err, &ce) || ce.Code != http2.ErrCodeNo {
		t.Errorf("result %+v", r)
	}
	eventually(t, "the connection is gone", func() bool { return len(p.Conns()) == 0 })
	if got != sent.Load() {
		t.Errorf("got %d bytes of %d", got, sent.Load())
	}
}

// TestSettingsComeFirst: however soon a PING is due.
func TestSettingsComeFirst(t *testing.T) {
	cfg := serverConfig()
	cfg.PingInterval = time.Nanosecond
	_, hop := startServer(t, cfg)
	for range 200 {
		peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
		f, err := peer.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f.Header().Type != http2.FrameSettings {
			t.Fatalf("the first frame is %v", f)
		}
		peer.Close()
	}
}
