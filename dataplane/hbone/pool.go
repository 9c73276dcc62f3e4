// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// Header is one header field; names are lower case.
type Header struct{ Name, Value string }

// Key names what a pooled connection may be shared by: streams with equal keys share connections, others never do.
type Key struct {
	Source       string         // identity that the client presents
	Destinations string         // accepted server identities, in one canonical string
	SourceIP     netip.Addr     // address of the pod the traffic comes from
	Addr         netip.AddrPort // where to connect to
}

// PoolConfig configures a Pool. Dial and TLS are required.
type PoolConfig struct {
	Config
	// IdleFor is how long a connection may carry no stream before it is closed; 0 means 5 min. One that was made while the
	// key had others, because they were full, may do so for 5 s at most.
	IdleFor time.Duration
	// Spread is how many connections streams with the same key are spread over before any of them is full, so that one
	// key may keep several processors busy: sealing and opening records is in order, and so one at a time, per connection.
	// 0 means 1.
	Spread int
	// SpreadBulk is the same for a key whose streams have not lately carried small messages: bulk gains from windows and
	// processors of its own, small messages from sharing records, writes and wake-ups. 0 means Spread.
	SpreadBulk int
	// Dial makes the TCP connection for k.
	Dial func(ctx context.Context, k Key) (*net.TCPConn, error)
	// TLS returns the client configuration for k: certificate and verification. The pool works on a copy.
	TLS func(ctx context.Context, k Key) (*tls.Config, error)
}

// spareFor bounds how long connections that only a burst needed lie idle: each costs both sides as much as many streams.
const spareFor = 5 * time.Second

// Request asks a peer for a tunnel.
type Request struct {
	Authority string
	Header    []Header
	// Once are header fields, too, whose values no other request has: the peer is not made to remember them, in the place of
	// those that come again.
	Once []Header
}

// Pool opens tunnels and shares connections among them. All methods may be called concurrently.
type Pool struct {
	cfg     PoolConfig
	started chan struct{} // closed by Run
	stopped chan struct{} // closed by Drain and Close
	work    sync.WaitGroup

	mu      sync.Mutex
	entries map[Key]*entry
	stop    bool // no new streams
	cut     bool // no connections either
}

// entry is what the pool has for one key.
type entry struct {
	conns   []*conn
	attempt *attempt  // the one connection attempt in flight, if any
	another time.Time // from when on one may be begun that no stream waits for
	small   bool      // its streams carried small messages lately
}

// attempt is a connection attempt that any number of streams wait for.
type attempt struct {
	done    chan struct{}
	conn    *conn        // the outcome, or
	err     error        // why there is none; both set before done is closed
	stage   atomic.Int32 // Stage reached
	cancel  context.CancelFunc
	waiters int // guarded by Pool.mu
}

// NewPool returns a pool; Open waits until Run is called.
func NewPool(cfg PoolConfig) *Pool {
	cfg.Config = cfg.Config.withDefaults(100, 16<<10)
	if cfg.IdleFor == 0 {
		cfg.IdleFor = 5 * time.Minute
	}
	cfg.Spread = max(1, cfg.Spread)
	cfg.SpreadBulk = max(cfg.Spread, cfg.SpreadBulk)
	return &Pool{
		cfg:     cfg,
		started: make(chan struct{}), stopped: make(chan struct{}),
		entries: make(map[Key]*entry),
	}
}

// Run owns the pool's goroutines; it is called once. It returns nil once ctx has ended, or the pool was closed or
// drained, and every connection is gone. The end of ctx cuts.
func (p *Pool) Run(ctx context.Context) error {
	close(p.started)
	stop := context.AfterFunc(ctx, p.Close)
	defer stop()
	<-p.stopped
	p.work.Wait()
	return nil
}

// Open asks the peer that k names for a tunnel and returns once it answered 200. A refusal is a *StatusError, a
// connection that did not come about a *ConnectError. A stream that the peer certainly did not process is opened once
// more, on another connection; so is one whose connection was reset before the answer, as those to a peer that is gone
// are when another has its address: once for each that streams are spread over. A tunnel carries nothing before the
// answer, so nothing is done twice but a connection made.
func (p *Pool) Open(ctx context.Context, k Key, r *Request) (*Stream, error) {
	select {
	case <-p.started:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	var avoid *conn
	refused, lost := 0, 0
	for unsent := 1; ; {
		c, err := p.acquire(ctx, k, avoid)
		if err != nil {
			return nil, err
		}
		s, err := c.open(ctx, r)
		if errors.Is(err, errUnprocessed) {
			_ = c.unusable() // lets it go if it allows no streams, which was not known before
		}
		switch {
		case errors.Is(err, errNotSent) && unsent < maxUnsent:
			unsent++ // it drains; acquire will not offer it again
		case errors.Is(err, errNotSent):
			return nil, &ConnectError{Stage: StageH2, Err: c.unusable()}
		case errors.Is(err, errLost) && lost < p.cfg.SpreadBulk:
			lost++
			avoid = c
		case errors.Is(err, errUnprocessed) && refused == 0:
			refused++
			avoid = c
		default:
			return s, err
		}
	}
}

// maxUnsent is how many connections one Open tries that turn out to take no stream.
const maxUnsent = 3

// acquire reserves a place on a connection for k, other than avoid, making one if need be.
func (p *Pool) acquire(ctx context.Context, k Key, avoid *conn) (*conn, error) {
	for useless := 0; ; {
		p.mu.Lock()
		if p.stop {
			p.mu.Unlock()
			return nil, ErrClosed
		}
		e := p.entry(k)
		e.look()
		few, each := p.spreadOf(e)
		if c := e.take(few, each, avoid); c != nil {
			p.spread(ctx, k, e)
			p.mu.Unlock()
			return c, nil
		}
		if e.attempt == nil {
			e.attempt = p.connect(ctx, k)
		}
		a := e.attempt
		a.waiters++
		p.mu.Unlock()
		if err := p.await(ctx, k, a); err != nil {
			return nil, err
		}
		// One that others have filled already is no failure.
		if err := a.conn.unusable(); err != nil {
			if useless++; useless == maxUnsent {
				return nil, &ConnectError{Stage: StageH2, Err: err}
			}
		}
	}
}

// entry returns what there is for k. p.mu is held.
func (p *Pool) entry(k Key) *entry {
	e := p.entries[k]
	if e == nil {
		e = &entry{}
		p.entries[k] = e
	}
	return e
}

// pooled tells the pool what happens on its connections.
type pooled struct {
	p *Pool
	k Key
}

func (*pooled) request(*stream, *http2.MetaHeadersFrame) error { return nil }

func (o *pooled) changed(c *conn) {
	draining, active := c.isDraining()
	if draining && active == 0 {
		c.finish()
	}
}

// remove takes an ended connection out.
func (p *Pool) remove(k Key, c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[k]
	if e == nil {
		return
	}
	if i := slices.Index(e.conns, c); i >= 0 {
		e.conns = slices.Delete(e.conns, i, i+1)
	}
	p.prune(k, e)
}

// prune forgets a key that has nothing left. p.mu is held.
func (p *Pool) prune(k Key, e *entry) {
	if len(e.conns) == 0 && e.attempt == nil && p.entries[k] == e {
		delete(p.entries, k)
	}
}

// Drain takes no new streams; connections end with their last stream.
func (p *Pool) Drain() {
	for _, c := range p.halt(false) {
		c.drain()
	}
}

// Close cuts every connection.
func (p *Pool) Close() {
	for _, c := range p.halt(true) {
		c.cut("pool closed")
	}
}

// halt stops opening and returns the connections there are.
func (p *Pool) halt(cut bool) []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stop {
		p.stop = true
		close(p.stopped)
	}
	p.cut = p.cut || cut
	var all []*conn
	for _, e := range p.entries {
		all = append(all, e.conns...)
		if e.attempt != nil {
			e.attempt.cancel()
		}
	}
	return all
}

// ConnInfo describes a live connection.
type ConnInfo struct {
	Key           Key // of a pooled one
	Local, Remote netip.AddrPort
	Streams       int
	Draining      bool
	Since         time.Time
	TLS           *tls.ConnectionState
}

// Conns lists the live connections.
func (p *Pool) Conns() []ConnInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []ConnInfo
	for k, e := range p.entries {
		for _, c := range e.conns {
			i := c.info()
			i.Key = k
			all = append(all, i)
		}
	}
	return all
}

// Cut ends the connections that which picks at once, and every stream on them.
func (p *Pool) Cut(why string, which func(ConnInfo) bool) {
	p.mu.Lock()
	var cut []*conn
	for k, e := range p.entries {
		for _, c := range e.conns {
			i := c.info()
			if i.Key = k; which(i) {
				cut = append(cut, c)
			}
		}
	}
	p.mu.Unlock()
	for _, c := range cut {
		c.cut(why)
	}
}

func (c *conn) info() ConnInfo {
	draining, active := c.isDraining()
	return ConnInfo{Local: c.local, Remote: c.remote, Streams: active, Draining: draining, Since: c.since, TLS: &c.state}
}
