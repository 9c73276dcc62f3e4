// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// CacheConfig is how a Cache fetches. Zero values mean the defaults that are named.
type CacheConfig struct {
	Signer      Signer
	Concurrency int // calls of Signer at a time; 8
	// BackoffMin and BackoffMax bound the wait after a failure, which doubles from one to the other (1 s, 150 s). Each wait
	// is shortened at random by up to half, so that nodes do not return together.
	BackoffMin, BackoffMax time.Duration
	// BackoffDemand bounds it while a connection waits (5 s).
	BackoffDemand time.Duration
	// FetchTimeout ends one call of Signer (10 s).
	FetchTimeout time.Duration
	Log          *slog.Logger
}

func (c CacheConfig) withDefaults() CacheConfig {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&c.BackoffMin, time.Second}, {&c.BackoffMax, 150 * time.Second}, {&c.BackoffDemand, 5 * time.Second}, {&c.FetchTimeout, 10 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.Concurrency == 0 {
		c.Concurrency = 8
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

// ErrCacheClosed is what waits for a certificate end with when Run returns.
var ErrCacheClosed = errors.New("certificate cache is closed")

// Cache holds one certificate for each identity that the node's workloads use and keeps it fresh. It is safe for
// concurrent use. Nothing is fetched before Run.
type Cache struct {
	cfg  CacheConfig
	wake chan struct{} // capacity 1: there may be work

	mu      sync.Mutex
	entries map[mesh.Identity]*entry // guarded by mu
	flights int                      // calls of Signer; guarded by mu
	closed  bool                     // guarded by mu
	lost    error                    // a failure because of which Run is to await the authority; guarded by mu
	waiting bool                     // the authority is awaited; guarded by mu
	returns int                      // of the authority without a success after; guarded by mu
}

type priority uint8

// In order of rising urgency.
const (
	background priority = iota // refresh
	warmup                     // a workload appeared on the node
	realTime                   // a connection waits
)

// entry is guarded by its cache's mu.
type entry struct {
	id       mesh.Identity
	refs     int // Prefetch less Forget
	waiters  int
	cert     *Certificate
	err      error // of the latest fetch
	failures int   // in a row
	prio     priority
	due      time.Time     // of the next fetch; zero: none
	ended    time.Time     // of the latest fetch
	flying   bool          // a fetch is under way
	stale    bool          // what that fetch brings is to be fetched again
	changed  chan struct{} // closed when a fetch ends, then replaced
}

// NewCache makes a Cache; the caller runs it.
func NewCache(cfg CacheConfig) *Cache {
	return &Cache{cfg: cfg.withDefaults(), wake: make(chan struct{}, 1), entries: map[mesh.Identity]*entry{}}
}

// Get returns id's certificate at once if there is a valid one. Otherwise it has one fetched before all others and waits
// for the outcome of that fetch or the end of ctx.
func (c *Cache) Get(ctx context.Context, id mesh.Identity) (*Certificate, error) {
	c.mu.Lock()
	e := c.entry(id, realTime)
	now := time.Now()
	if e.cert != nil && !e.cert.Expired(now) {
		// Nobody refreshes what no workload holds, so its users do.
		if e.refs == 0 && e.due.IsZero() && now.After(halfLife(e.cert, e.ended)) {
			c.schedule(e, background, now)
		}
		cert := e.cert
		c.mu.Unlock()
		return cert, nil
	}
	e.waiters++
	if !e.flying {
		c.schedule(e, realTime, c.demand(e, now))
	}
	changed := e.changed
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return nil, c.leave(e, ErrCacheClosed)
	}
	select {
	case <-changed:
	case <-ctx.Done():
		return nil, c.leave(e, ctx.Err())
	}
	return c.outcome(e)
}

// Refresh fetches every certificate again, as when the roots that their issuer trusts have changed. Each stays in use until
// the next one is there.
func (c *Cache) Refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, e := range c.entries {
		switch {
		case e.flying:
			e.stale = true
		case e.waiters == 0:
			c.schedule(e, background, now)
		}
	}
}

// demand is when to fetch for a connection that waits: now, or as soon as a failure lets it.
func (c *Cache) demand(e *entry, now time.Time) time.Time {
	due := now
	if e.failures > 0 {
		due = e.ended.Add(min(c.backoff(e.failures), c.cfg.BackoffDemand))
	}
	if !e.due.IsZero() && e.due.Before(due) {
		return e.due
	}
	return due
}

// leave ends a wait that had no outcome.
func (c *Cache) leave(e *entry, cause error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.waiters--
	if e.err != nil {
		return &UnavailableError{Identity: e.id, Err: errors.Join(cause, e.err)}
	}
	return &UnavailableError{Identity: e.id, Err: cause}
}

func (c *Cache) outcome(e *entry) (*Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.waiters--
	switch {
	case e.cert != nil && !e.cert.Expired(time.Now()):
		return e.cert, nil
	case e.err != nil:
		return nil, &UnavailableError{Identity: e.id, Err: e.err}
	case c.closed:
		return nil, &UnavailableError{Identity: e.id, Err: ErrCacheClosed}
	default:
		return nil, &UnavailableError{Identity: e.id, Err: errors.New("it expired on arrival")}
	}
}

// UnavailableError says that an identity has no valid certificate, and why. It is the fault of this side.
type UnavailableError struct {
	Identity mesh.Identity
	Err      error
}

func (e *UnavailableError) Error() string {
	return "certificate of " + e.Identity.String() + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }

// Prefetch says that a workload with identity id is on the node: its certificate is fetched and kept fresh until Forget
// was called as often as Prefetch.
func (c *Cache) Prefetch(id mesh.Identity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entry(id, warmup)
	if e.refs++; e.refs > 1 || e.flying || !e.due.IsZero() {
		return
	}
	// Known from a Get alone, which plans nothing.
	if now := time.Now(); e.cert != nil && !e.cert.Expired(now) {
		c.schedule(e, background, halfLife(e.cert, e.ended))
	} else {
		c.schedule(e, warmup, now)
	}
}

// Forget takes one Prefetch back. With the last, the certificate is dropped, unless a connection waits for it.
func (c *Cache) Forget(id mesh.Identity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[id]
	if e == nil || e.refs == 0 {
		return
	}
	if e.refs--; e.refs == 0 && e.waiters == 0 {
		delete(c.entries, id)
	}
}

// entry finds or makes id's entry; a new one is due at once. The caller holds mu.
func (c *Cache) entry(id mesh.Identity, p priority) *entry {
	e := c.entries[id]
	if e == nil {
		e = &entry{id: id, changed: make(chan struct{})}
		c.entries[id] = e
		c.schedule(e, p, time.Now())
	}
	return e
}

// schedule plans e's next fetch and wakes Run. The caller holds mu.
func (c *Cache) schedule(e *entry, p priority, due time.Time) {
	e.prio, e.due = p, due
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// backoff is the wait after the given number of failures in a row.
func (c *Cache) backoff(failures int) time.Duration {
	d := c.cfg.BackoffMin
	for i := 1; i < failures && d < c.cfg.BackoffMax; i++ {
		d *= 2
	}
	d = min(d, c.cfg.BackoffMax)
	return d - rand.N(d/2+1)
}

// halfLife is when to refresh: in the middle of what was left of the certificate's life when it came. Its own beginning is
// of no use for that, being backdated.
func halfLife(cert *Certificate, received time.Time) time.Time {
	return received.Add(cert.Leaf.NotAfter.Sub(received) / 2)
}
