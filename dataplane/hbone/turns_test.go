// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// TestTurns: so many requests at once, in order; those that do not come to an end are waited for a little each, and those
// that end well make room for more.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var order []int
		var turns turns
		var all []*Inbound
		enter := func(n int) {
			for range n {
				id := len(all)
				in := &Inbound{start: func() {
					mu.Lock()
					order = append(order, id)
					mu.Unlock()
				}}
				all = append(all, in)
				turns.enter(in)
			}
		}
		started := func(want int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(order) != want || !slices.IsSorted(order) {
				t.Fatalf("started %v, want the first %d", order, want)
			}
		}
		enter(turnsFirst + 10)
		started(turnsFirst)
		turns.leave(all[3], false)
		turns.leave(all[5], false)
		started(turnsFirst + 2)
		time.Sleep(turnGap) // for the oldest
		started(turnsFirst + 3)
		turns.leave(all[0], false) // which counts no more
		started(turnsFirst + 3)
		turns.leave(all[4], true)
		started(turnsFirst + 5)
		time.Sleep(5 * turnGap)
		started(turnsFirst + 10)
		time.Sleep(time.Minute)
		enter(2)
		started(turnsFirst + 10)
		time.Sleep(2 * turnGap)
		started(turnsFirst + 12)
		for _, in := range all {
			turns.leave(in, true)
		}
		enter(turnsFirst + len(all))
		started(len(all))
	})
}

// TestRequestsGivenUpBeforeTheirTurn reach no handler, and leave nothing behind.
func TestRequestsGivenUpBeforeTheirTurn(t *testing.T) {
	const n = 150
	var handled atomic.Int32
	release, last := make(chan struct{}), make(chan struct{})
	cfg := serverConfig()
	cfg.Handler = func(_ context.Context, in *Inbound) {
		if in.Authority == "last:1" {
			close(last)
			return
		}
		handled.Add(1)
		<-release
	}
	srv, hop := startServer(t, cfg)
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
	wire := peer.fr
	var b bytes.Buffer // in one write, as an attacker does it
	peer.fr = http2.NewFramer(&b, nil)
	for id := uint32(1); id < 2*n; id += 2 {
		peer.connect(id, "x:1")
		peer.fr.WriteRSTStream(id, http2.ErrCodeCancel)
	}
	peer.connect(2*n+1, "last:1")
	peer.fr = wire
	peer.Write(b.Bytes())
	<-last
	if got := handled.Load(); got > n/2 {
		t.Errorf("%d of %d requests were handled", got, n)
	}
	close(release)
	eventually(t, "no stream is left", func() bool { c := srv.Conns(); return len(c) == 1 && c[0].Streams == 0 })
}
