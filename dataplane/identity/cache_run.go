// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Run fetches until ctx ends, then waits for the calls under way. It returns nil; the Cache is of no use afterwards.
func (c *Cache) Run(ctx context.Context) error {
	var flights sync.WaitGroup
	defer c.close()
	defer flights.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := c.start(func(e *entry) {
			flights.Go(func() { c.fetch(ctx, e) })
		})
		if failure := c.lostAuthority(); failure != nil {
			flights.Go(func() { c.await(ctx, failure) })
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-timer.C:
		}
	}
}

// start launches whatever is due, most urgent first, as far as concurrency allows, and returns when to look again.
func (c *Cache) start(launch func(*entry)) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for c.flights < c.cfg.Concurrency {
		e := c.mostUrgent(now)
		if e == nil {
			break
		}
		e.flying, e.due = true, time.Time{}
		c.flights++
		launch(e)
	}
	next := time.Hour
	for _, e := range c.entries {
		if d := e.due.Sub(now); !e.due.IsZero() && !e.flying && d > 0 {
			next = min(next, d)
		}
	}
	return next
}

// mostUrgent is the entry to fetch next, or nil. Entries that nobody wants any more are dropped on the way.
func (c *Cache) mostUrgent(now time.Time) *entry {
	var best *entry
	for id, e := range c.entries {
		if c.unwanted(e, now) {
			delete(c.entries, id)
			continue
		}
		if e.flying || e.due.IsZero() || e.due.After(now) {
			continue
		}
		if best == nil || e.prio > best.prio || e.prio == best.prio && e.due.Before(best.due) {
			best = e
		}
	}
	return best
}

// unwanted reports whether e may go: nobody holds it or waits, and it has neither a certificate nor a failure to remember.
func (c *Cache) unwanted(e *entry, now time.Time) bool {
	return e.refs == 0 && e.waiters == 0 && !e.flying &&
		(e.cert == nil || e.cert.Expired(now)) && now.Sub(e.ended) > c.cfg.BackoffMax
}

func (c *Cache) fetch(ctx context.Context, e *entry) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.FetchTimeout)
	defer cancel()
	cert, err := c.cfg.Signer.Sign(ctx, e.id)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flights--
	now := time.Now()
	e.flying, e.ended, e.err = false, now, err
	if err == nil {
		e.cert, e.failures, c.returns = cert, 0, 0
	} else {
		e.failures++
		c.lost = err
	}
	c.plan(e, now)
	if e.stale && err == nil {
		c.schedule(e, background, now)
	}
	e.stale = false
	close(e.changed)
	e.changed = make(chan struct{})
	c.report(e)
}

// plan schedules what follows the fetch that just ended. The caller holds mu.
func (c *Cache) plan(e *entry, now time.Time) {
	switch {
	case e.refs == 0 || c.entries[e.id] != e:
		c.schedule(e, background, time.Time{})
	case e.err == nil:
		c.schedule(e, background, maxTime(halfLife(e.cert, now), now.Add(c.cfg.BackoffMin)))
	case e.cert != nil && !e.cert.Expired(now):
		c.schedule(e, background, now.Add(c.backoff(e.failures)))
	default:
		c.schedule(e, warmup, now.Add(c.backoff(e.failures)))
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (c *Cache) report(e *entry) {
	if e.err != nil {
		c.cfg.Log.Warn("certificate not fetched", "identity", e.id.String(), "failures", e.failures, "error", e.err)
		return
	}
	c.cfg.Log.Debug("certificate fetched", "identity", e.id.String(), "until", e.cert.Leaf.NotAfter)
}

// close wakes whoever still waits.
func (c *Cache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, e := range c.entries {
		close(e.changed)
		e.changed = make(chan struct{})
	}
}

// Roots are those that the issuers of the certificates here trust, without repetition.
func (c *Cache) Roots() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*x509.Certificate
	for _, e := range c.entries {
		if e.cert == nil {
			continue
		}
		for _, r := range e.cert.RootCerts {
			if !slices.ContainsFunc(all, r.Equal) {
				all = append(all, r)
			}
		}
	}
	return all
}

// State is one identity as a dump shows it.
type State struct {
	Identity mesh.Identity
	// State is "Available", "Initializing" or "Unavailable: <reason>".
	State       string
	Certificate *Certificate // nil if there never was one
}

// List returns every identity that the cache holds, sorted.
func (c *Cache) List() []State {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	out := make([]State, 0, len(c.entries))
	for _, e := range c.entries {
		s := State{Identity: e.id, Certificate: e.cert, State: "Initializing"}
		switch {
		case e.cert != nil && !e.cert.Expired(now):
			s.State = "Available"
		case e.err != nil:
			s.State = "Unavailable: " + e.err.Error()
		case e.cert != nil:
			s.State = "Unavailable: expired"
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b State) int { return strings.Compare(a.Identity.String(), b.Identity.String()) })
	return out
}
