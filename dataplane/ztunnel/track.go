// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"crypto/tls"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/authz"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// live is a connection that is listed.
type live struct {
	inbound     bool
	hbone       bool
	start       time.Time
	src         netip.AddrPort
	originalDst string         // outbound: the address asked for; inbound: the service's host name, if known
	actualDst   netip.AddrPort // where it goes
	judge       authz.Connection
	cut         context.CancelCauseFunc
	peer        *tls.ConnectionState // of a tunnel

	// While bytes are moved; guarded by tracker.mu.
	rec        *telemetry.Record
	bytes      func() (sent, received uint64) // as in rec
	sent, recv uint64                         // of a listed copy
	ends       [2]mesh.Identity               // the same: the two ends, once mutual TLS has shown them
	service    string                         // the same
	traceID    string                         // the same
}

// manyConns is from how many entries on an emptied map is let go: a map never shrinks.
const manyConns = 1000

// tracker lists a proxy's live connections and cuts those that policy no longer allows.
type tracker struct {
	mu     sync.Mutex
	conns  map[*live]struct{}
	most   int       // since conns was made
	set    authz.Set // what the connections were last judged by
	judged bool
}

// add lists c. An inbound connection is added before it is judged for the first time: a policy that changes between the
// two is then seen either by that judgement or by judge.
func (t *tracker) add(c *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		t.conns = make(map[*live]struct{})
	}
	t.conns[c] = struct{}{}
	t.most = max(t.most, len(t.conns))
}

func (t *tracker) remove(c *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
	if len(t.conns) == 0 && t.most > manyConns {
		t.conns, t.most = nil, 0
	}
}

// measure has c's bytes counted into rec's metrics from here on; a nil bytes ends that, and rec is its owner's again.
func (t *tracker) measure(c *live, rec *telemetry.Record, bytes func() (sent, received uint64)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.rec, c.bytes = rec, bytes
}

// progress brings the byte counters up to date with the live connections.
func (t *tracker) progress(m *telemetry.Metrics) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		if c.bytes != nil {
			sent, received := c.bytes()
			m.ConnProgress(c.rec, sent, received)
		}
	}
}

// judge cuts every inbound connection that set refuses. It does nothing if that is the one of the last time.
func (t *tracker) judge(set authz.Set) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.judged && t.set == set {
		return
	}
	t.set, t.judged = set, true
	for c := range t.conns {
		if !c.inbound {
			continue
		}
		if d := set.Decide(c.judge); !d.Allowed {
			c.cut(&policyError{decision: d, late: true})
		}
	}
}

// list returns the connections, inbound and outbound, in the order of their source addresses.
func (t *tracker) list() (inbound, outbound []live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		now := *c
		now.ends[0] = c.judge.Source
		if c.bytes != nil {
			now.sent, now.recv = c.bytes()
			now.ends = [2]mesh.Identity{c.rec.Src.Identity, c.rec.Dst.Identity}
			now.service, now.traceID = c.rec.Service, c.rec.TraceID
		}
		if c.inbound {
			inbound = append(inbound, now)
		} else {
			outbound = append(outbound, now)
		}
	}
	bySource := func(a, b live) int { return a.src.Compare(b.src) }
	slices.SortFunc(inbound, bySource)
	slices.SortFunc(outbound, bySource)
	return inbound, outbound
}
