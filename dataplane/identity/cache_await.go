// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"time"
)

// Awaiter is a Signer that notices when its authority can be reached again.
type Awaiter interface {
	Signer
	// Await blocks while the authority cannot be reached, given that a call failed. It returns an error at once if that
	// failure was the authority's own answer, so that there is nothing to wait for, and when ctx ends.
	Await(ctx context.Context, failure error) error
}

// lostAuthority returns the failure to await the authority after, once; nil if there is none.
func (c *Cache) lostAuthority() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	failure := c.lost
	c.lost = nil
	if _, ok := c.cfg.Signer.(Awaiter); !ok || failure == nil || c.waiting {
		return nil
	}
	c.waiting = true
	return failure
}

// await waits until the authority can be reached, and has everything that failed fetched at once then, whatever its own
// back-off says. An authority that can be reached and fails all the same is given more time on each of its returns.
func (c *Cache) await(ctx context.Context, failure error) {
	err := c.cfg.Signer.(Awaiter).Await(ctx, failure)
	if err == nil {
		c.pause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = false
	if err != nil || ctx.Err() != nil {
		return
	}
	c.returns++
	now := time.Now()
	for _, e := range c.entries {
		if e.err == nil || e.flying || e.due.IsZero() && e.waiters == 0 {
			continue
		}
		if e.due.IsZero() || e.due.After(now) {
			c.schedule(e, e.prio, now)
		}
	}
	c.cfg.Log.Info("certificate authority can be reached again")
}

func (c *Cache) pause(ctx context.Context) {
	c.mu.Lock()
	n := c.returns
	c.mu.Unlock()
	if n == 0 {
		return
	}
	t := time.NewTimer(c.backoff(n))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
