// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"net"
	"net/netip"
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
				turns.answered(in)
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
		turns.leave(all[3], replied)
		turns.leave(all[5], replied)
		started(turnsFirst + 2)
		time.Sleep(turnGap) // for the oldest
		started(turnsFirst + 3)
		turns.leave(all[0], replied) // which counts no more
		started(turnsFirst + 3)
		turns.leave(all[4], endedWell)
		started(turnsFirst + 5)
		time.Sleep(5 * turnGap)
		started(turnsFirst + 10)
		time.Sleep(time.Minute)
		enter(2)
		started(turnsFirst + 10)
		time.Sleep(2 * turnGap)
		started(turnsFirst + 12)
		for _, in := range all {
			turns.leave(in, endedWell)
		}
		enter(turnsFirst + len(all))
		started(len(all))
	})
}

// TestTurnsOfOneClient are shared by its connections: how many requests are opening, how many are under way, and what
// goes on though nothing ends.
func TestTurnsOfOneClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients = 4
		guard, addr := NewGuard(), netip.MustParseAddr("10.0.0.1")
		conns := make([]shared, clients)
		for i := range conns {
			conns[i].turns.guard, conns[i].turns.addr = guard, addr
		}
		want := func(what string, want ...int) {
			t.Helper()
			synctest.Wait()
			for i, n := range want {
				if got := len(conns[i].started()); got != n {
					t.Errorf("%s: connection %d started %d, want %d", what, i, got, n)
				}
			}
		}
		for i := range conns {
			conns[i].enter(turnsOpening + 1)
		}
		want("as the first, the second, the third, and the fourth", 4, 4, 2, 1)
		for i := range conns {
			conns[i].enter(100)
			for _, in := range conns[i].started() {
				conns[i].turns.answered(in)
			}
		}
		want("one more for each that has none opening, where few are under way", 4, 4, 3, 2)
		conns[0].turns.leave(conns[0].started()[0], replied)
		conns[1].turns.leave(conns[1].started()[0], endedWell)
		want("as one ended, and one ended well", 5, 6, 3, 2)
		time.Sleep(clients * turnGap)
		want("after a turn of each", 6, 7, 4, 3)
		time.Sleep(clients * 200 * turnGap)
		want("at last", 105, 105, 105, 105)
		if n := guard.crowded(addr); n != 0 {
			t.Errorf("%d connections are thought to have requests that wait", n)
		}
	})
}

// TestTurnsOfTunnelsThatEndBadly come one after the other, however many there are.
func TestTurnsOfTunnelsThatEndBadly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := shared{turns: turns{guard: NewGuard()}}
		s.enter(turnsOpening)
		for _, in := range s.started() {
			s.turns.leave(in, endedBadly)
		}
		s.enter(1)
		if n := len(s.started()); n != turnsOpening+1 {
			t.Fatalf("%d of %d that nothing is in front of started", n, turnsOpening+1)
		}
		s.enter(100)
		before := turnsOpening + turnsOpening
		for _, in := range s.started() {
			s.turns.leave(in, endedBadly)
		}
		time.Sleep(turnGap) // the first was to make room by force
		synctest.Wait()
		for n := range 50 {
			all := s.started()
			if len(all) != before+1+n {
				t.Fatalf("%d started after %d turns, want %d", len(all), n, before+1+n)
			}
			s.turns.leave(all[len(all)-1], endedBadly)
			time.Sleep(endGap)
			synctest.Wait()
		}
	})
}

// shared is one of several connections, and what it has started.
type shared struct {
	turns turns
	mu    sync.Mutex
	done  []*Inbound
}

func (s *shared) enter(n int) {
	for range n {
		in := &Inbound{}
		in.start = func() {
			s.mu.Lock()
			s.done = append(s.done, in)
			s.mu.Unlock()
		}
		s.turns.enter(in)
	}
}

func (s *shared) started() []*Inbound {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.done)
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
