// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The upstream sends every query here again, as a resolver does whose own upstream leads back to it.
func TestLoops(t *testing.T) {
	for _, c := range []struct {
		why    string
		strips bool // the resolver does not pass EDNS options on
		most   int32
	}{{"a resolver that forwards as it is asked", false, suspicious}, {"one that asks anew", true, tooMany}} {
		t.Run(c.why, func(t *testing.T) {
			var r *rig
			var rounds atomic.Int32
			ready := make(chan struct{})
			r = newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
				<-ready
				rounds.Add(1)
				again := q.Copy()
				if c.strips {
					again.Extra = nil
				}
				again.Id = dns.Id()
				m, err := r.ask("udp", again)
				if err != nil {
					return
				}
				m.Id = q.Id
				_ = w.WriteMsg(m)
			}, func(c *Config, _ *fakeMesh, _ *fakeTransport) { c.Attempt = 10 * time.Second })
			close(ready)
			start := time.Now()
			if m := r.must("udp", question4("round.example.org")); m.Rcode != dns.RcodeServerFailure {
				t.Errorf("got %v", m)
			}
			if rounds.Load() > c.most || time.Since(start) > 10*time.Second {
				t.Errorf("%d rounds in %s, want %d at most", rounds.Load(), time.Since(start), c.most)
			}
			if !strings.Contains(r.log.String(), "round in a circle") {
				t.Errorf("nobody was told: %s", r.log.String())
			}
			r.server.flights.mu.Lock()
			defer r.server.flights.mu.Unlock()
			if n := len(r.server.flights.equal); n != 0 {
				t.Errorf("%d queries are still taken to be on their way", n)
			}
		})
	}
}

// Many clients that ask the same at once are no loop, and do not see the mark.
func TestEqualQueriesAtOnceAreNoLoop(t *testing.T) {
	gather, one := make(chan struct{}), make(chan struct{})
	var marked atomic.Int32
	answered := zoneOf("example.org. 5 IN A 192.0.2.1")
	r := newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if q.IsEdns0() != nil && marked.Add(1) == 1 {
			close(one)
		}
		<-gather
		answered(w, q)
	}, func(c *Config, _ *fakeMesh, _ *fakeTransport) { c.Attempt = 10 * time.Second })
	var g sync.WaitGroup
	for range 30 {
		g.Go(func() {
			m, err := r.ask("udp", question4("example.org"))
			if err != nil || records(m) != "192.0.2.1" || m.IsEdns0() != nil {
				t.Errorf("got %v, %v", m, err)
			}
		})
	}
	select {
	case <-one:
	case <-time.After(patience):
		t.Error("control: no query was marked")
	}
	close(gather)
	g.Wait()
}
