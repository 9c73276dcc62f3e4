// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
)

// TestOpenAgainAfterAReset: a pooled connection whose peer is gone is reset when it is used, and so is each that streams are
// spread over; the stream must not notice. A peer that resets again is given up.
func TestOpenAgainAfterAReset(t *testing.T) {
	for name, tc := range map[string]struct {
		resets, conns int32
		spread        int
	}{
		"once":                 {resets: 1, conns: 2},
		"always":               {resets: 9, conns: 2},
		"each of two":          {resets: 2, conns: 3, spread: 2},
		"more than are spread": {resets: 9, conns: 3, spread: 2},
	} {
		t.Run(name, func(t *testing.T) {
			var conns atomic.Int32
			hop := serveApps(t, func(c *net.TCPConn) {
				defer c.Close()
				peer := newRawPeer(c, pki().server)
				peer.handshakeServer()
				f, err := peer.next(http2.FrameHeaders)
				if err != nil {
					return
				}
				if conns.Add(1) <= tc.resets {
					_ = c.SetLinger(0)
					return
				}
				peer.respond(f.Header().StreamID, "200", false)
				_, _ = peer.next(http2.FrameRSTStream)
			})
			cfg := clientConfig()
			cfg.Spread = tc.spread
			p := startPool(t, cfg)
			s, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: "x:1"})
			if tc.resets < 9 {
				if err != nil {
					t.Fatal(err)
				}
				s.Reset(http2.ErrCodeCancel)
			} else if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("a peer that always resets: %v", err)
			}
			if n := conns.Load(); n != tc.conns {
				t.Errorf("%d connections, want %d", n, tc.conns)
			}
		})
	}
}
