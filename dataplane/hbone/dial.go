// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"
)

// await waits for a; an attempt that nobody waits for any more is cancelled, and nobody may join it.
func (p *Pool) await(ctx context.Context, k Key, a *attempt) error {
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	if a.waiters--; a.waiters == 0 {
		a.cancel()
		p.settle(k, a)
	}
	p.mu.Unlock()
	err := context.Cause(ctx)
	return &ConnectError{Stage: Stage(a.stage.Load()), Err: err, Timeout: errors.Is(err, context.DeadlineExceeded)}
}

// settle takes an attempt that is over out of its entry. p.mu is held.
func (p *Pool) settle(k Key, a *attempt) {
	if e := p.entries[k]; e != nil && e.attempt == a {
		e.attempt = nil
		p.prune(k, e)
	}
}

// connect starts an attempt. It outlives the caller's ctx as long as others wait for it. p.mu is held.
func (p *Pool) connect(ctx context.Context, k Key) *attempt {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.cfg.HandshakeTimeout)
	a := &attempt{done: make(chan struct{}), cancel: cancel}
	p.work.Go(func() {
		defer cancel()
		c, err := p.dial(ctx, k, a)
		p.mu.Lock()
		if err == nil {
			e := p.entry(k)
			if len(e.conns) >= p.cfg.SpreadBulk {
				c.boundIdle(spareFor)
			}
			e.conns = append(e.conns, c)
		} else if e := p.entries[k]; e != nil {
			e.another = time.Now().Add(spreadPause)
		}
		a.conn, a.err = c, err
		p.settle(k, a)
		stop, cut := p.stop, p.cut
		if e := p.entries[k]; e != nil && err == nil && !stop {
			p.spread(ctx, k, e) // streams that came meanwhile may call for one more
		}
		p.mu.Unlock()
		close(a.done)
		if c == nil {
			return
		}
		p.work.Go(func() { // not on this goroutine, whose stack grew with the handshake
			_ = c.run() // why it ended was told to its streams
			p.remove(k, c)
		})
		switch {
		case cut:
			c.cut("pool closed")
		case stop:
			c.drain()
		}
	})
	return a
}

// boundIdle shortens how long c may lie idle to d.
func (c *conn) boundIdle(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idleFor = min(c.idleFor, d)
}

// firstEnd is when the first of the certificates that both ends presented ends.
func firstEnd(cfg *tls.Config, cs *tls.ConnectionState) time.Time {
	var end time.Time
	if len(cs.PeerCertificates) > 0 {
		end = cs.PeerCertificates[0].NotAfter
	}
	if len(cfg.Certificates) > 0 && cfg.Certificates[0].Leaf != nil {
		if own := cfg.Certificates[0].Leaf.NotAfter; end.IsZero() || own.Before(end) {
			end = own
		}
	}
	return end
}

// dial makes one connection and starts it.
func (p *Pool) dial(ctx context.Context, k Key, a *attempt) (*conn, error) {
	failed := func(err error) error {
		var ne net.Error
		timeout := errors.Is(err, context.DeadlineExceeded) || (errors.As(err, &ne) && ne.Timeout())
		return &ConnectError{Stage: Stage(a.stage.Load()), Err: err, Timeout: timeout}
	}
	a.stage.Store(int32(StageTLS))
	cfg, err := p.cfg.TLS(ctx, k) // first: no point in connecting without an identity
	if err != nil {
		return nil, failed(err)
	}
	a.stage.Store(int32(StageTCP))
	t, err := p.cfg.Dial(ctx, k)
	if err != nil {
		return nil, failed(err)
	}
	a.stage.Store(int32(StageTLS))
	rec, state, err := handshake(ctx, t, cfg, true)
	if err != nil {
		t.Close()
		return nil, failed(err)
	}
	c := newConn(p.cfg.Config, &pooled{p, k}, true, rec, &state)
	c.idleFor, c.until = p.cfg.IdleFor, firstEnd(cfg, &c.state)
	c.start()
	return c, nil
}
