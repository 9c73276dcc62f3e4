// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/dns"
	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// shared is what all proxies of a process use.
type shared struct {
	cfg     *Config
	catalog *catalog.Store
	certs   *identity.Cache
	dns     *dns.Budget
	metrics *telemetry.Metrics
	access  *telemetry.AccessLog
	log     *slog.Logger
	work    workCounter
	queues  *hbone.Budget // nil: hbone's default

	// Set by Run before the first pod.
	keepSource bool
	revoked    *identity.RevocationFile // nil if there is none
}

// proxy serves one pod: listeners and a pool inside the pod's namespace.
type proxy struct {
	*shared
	local local
	ns    *netns.NS
	log   *slog.Logger
	own   bool // the pod is the ztunnel's own

	portTries func() int // see dialApp; asked when the first connection comes: kubelet has a pod's sysctls set after its network

	pool     *hbone.Pool
	server   *hbone.Server
	tracker  tracker
	policies policies

	lanes    []lane
	names    names
	conns    sync.WaitGroup // one for each accepted connection
	interest interest

	stop    sync.Once
	ended   chan struct{} // closed by drain
	grace   time.Duration // set before ended is closed
	expired chan struct{} // closed when what is left is about to be cut
}

// newProxy makes a proxy without listeners.
func newProxy(s *shared, info Info, ns *netns.NS) *proxy {
	p := &proxy{
		shared: s, ns: ns, ended: make(chan struct{}), expired: make(chan struct{}),
		local: local{Info: info, store: s.catalog, wait: s.cfg.Time.LocalWorkload},
		log:   s.log.With("namespace", info.Namespace, "name", info.Name),
	}
	h := hbone.Config{
		StreamWindow: int32(s.cfg.HBONE.StreamWindow), ConnWindow: int32(s.cfg.HBONE.ConnWindow),
		MaxFrameSize: s.cfg.HBONE.FrameSize, HandshakeTimeout: s.cfg.Time.Connect, Budget: s.queues,
		PingInterval: s.cfg.HBONE.PingInterval, PingTimeout: s.cfg.HBONE.PingTimeout,
	}
	client := h
	client.MaxStreams = s.cfg.HBONE.MaxStreams
	// Bulk goes over two connections for each processor: with one for each, 16 streams that are never done share windows of
	// 4 MiB, wait for them at every third read, and send the few bytes that windows leave as frames of their own.
	p.pool = hbone.NewPool(hbone.PoolConfig{Config: client, IdleFor: s.cfg.HBONE.IdleFor, Spread: s.cfg.Processors,
		SpreadBulk: 2 * s.cfg.Processors, Dial: p.dialTunnel, TLS: p.clientTLS})
	p.server = hbone.NewServer(hbone.ServerConfig{Config: h, TLS: p.serverTLS, Handler: p.serveTunnel, DrainTimeout: s.cfg.Time.Drain,
		OnHandshakeError: p.handshakeFailed})
	return p
}

// openProxy makes a proxy with its listeners; it takes over ns unless it fails.
func openProxy(ctx context.Context, s *shared, info Info, ns *netns.NS) (*proxy, error) {
	p := newProxy(s, info, ns)
	p.portTries = sync.OnceValue(p.sourcePortTries)
	for _, l := range []struct {
		port uint16
		lane lane
	}{
		{mesh.PortOutbound, lane{serveFile: p.startOutbound}},
		{mesh.PortPlaintext, lane{serve: p.spawn(p.servePlaintext)}},
		{mesh.PortHBONE, lane{serve: p.startHBONE}},
	} {
		if err := p.open(ctx, l.port, l.lane); err != nil {
			p.closeListeners()
			return nil, err
		}
	}
	if err := p.openNames(ctx); err != nil {
		p.closeListeners()
		return nil, err
	}
	return p, nil
}

func (p *proxy) open(ctx context.Context, port uint16, as lane) (err error) {
	if as.l, err = p.ns.ListenTCP(ctx, netip.AddrPortFrom(p.wildcard(), port), p.listenOptions()); err != nil {
		return err
	}
	if as.serveFile != nil {
		as.files, err = netns.NewAcceptor(as.l)
	}
	p.lanes = append(p.lanes, as)
	return err
}

// closeListeners undoes a start that failed.
func (p *proxy) closeListeners() {
	for _, l := range p.lanes {
		l.wake()
		l.l.Close()
	}
	p.names.close()
}

// spawn serves in a goroutine. The connection is closed, and run need not wait for it any more, once serve has called over.
func (p *proxy) spawn(serve func(ctx context.Context, c *net.TCPConn, over func())) func(context.Context, *net.TCPConn) {
	return func(ctx context.Context, c *net.TCPConn) {
		p.conns.Add(1)
		go serve(ctx, c, func() {
			_ = c.Close()
			p.conns.Done()
		})
	}
}

// startOutbound is spawn for serveOutbound, which closes the connection itself.
func (p *proxy) startOutbound(ctx context.Context, c *os.File, client netip.AddrPort) {
	p.conns.Add(1)
	go p.serveOutbound(ctx, c, client, p.conns.Done)
}

func (p *proxy) wildcard() netip.Addr {
	if p.cfg.IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// listenOptions are those of the listeners and of what they accept. Listeners are marked too: the answers to a client
// whose address is spoofed towards the application must not be mistaken for the application's.
func (p *proxy) listenOptions() netns.SocketOptions {
	o := p.dialOptions()
	o.ReusePort = p.cfg.ReusePort
	return o
}

func (p *proxy) dialOptions() netns.SocketOptions {
	t := p.cfg.TCP
	return netns.SocketOptions{
		Mark:        p.cfg.Mark,
		Timeout:     p.cfg.Time.Connect,
		UserTimeout: t.UserTimeout,
		KeepAlive:   net.KeepAliveConfig{Enable: t.KeepAlive, Idle: t.KeepAliveIdle, Interval: t.KeepAliveInterval, Count: t.KeepAliveCount},
	}
}

// drain ends run: at once without grace, else after the last connection, at most grace later.
func (p *proxy) drain(grace time.Duration) {
	p.stop.Do(func() {
		p.grace = grace
		close(p.ended)
	})
}

// run serves the pod until drain or the end of ctx, and returns when nothing of the proxy is left.
func (p *proxy) run(ctx context.Context) {
	defer p.ns.Close()
	defer p.interest.drop(p.certs)
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	p.refresh(p.catalog.Load())
	var rest, accepting sync.WaitGroup
	pooling, closePool := context.WithCancel(context.WithoutCancel(ctx))
	defer closePool()
	rest.Go(func() { _ = p.pool.Run(pooling) })
	for _, l := range p.lanes {
		accepting.Go(func() { p.accept(ctx, l) })
	}
	p.conns.Go(func() { p.names.serve(ctx) })
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.drain(0)
	}
	// The reason stands before anybody is cut, so that a connection which ends by itself meanwhile is not taken for one.
	limit, expire := context.WithCancel(context.WithoutCancel(ctx))
	over := sync.OnceFunc(func() { close(p.expired); expire() })
	defer over()
	defer time.AfterFunc(p.grace, over).Stop()
	defer context.AfterFunc(ctx, over)()
	p.wakeLanes()
	accepting.Wait() // nothing is added to conns from here on
	if p.grace > 0 {
		gone := make(chan struct{})
		rest.Go(func() {
			p.conns.Wait()
			close(gone)
		})
		_ = p.server.Shutdown(limit)
		select {
		case <-gone:
		case <-limit.Done():
		}
	}
	over()
	cut(p.cutReason())
	closePool() // not before, or a tunnel would end for want of its connection, and not say why
	_ = p.server.Shutdown(ctx)
	p.conns.Wait()
	p.pool.Close()
	rest.Wait()
}

// cutReason is why connections are cut once the proxy has ended.
func (p *proxy) cutReason() error {
	if p.grace > 0 {
		return errDrained
	}
	return errPodGone
}

// refresh follows the catalog: the pod's certificate is wanted, and its live connections are judged by what policy says now.
func (p *proxy) refresh(s *catalog.Snapshot) {
	w := p.local.in(s)
	if w == nil {
		return
	}
	p.interest.set(p.certs, p.local.identity(w))
	set := p.policies.of(s, w)
	set.Prepare() // here, and not while somebody connects
	p.tracker.judge(set)
}

// interest is the identity whose certificate a proxy keeps fresh.
type interest struct {
	mu   sync.Mutex
	id   mesh.Identity
	done bool
}

func (i *interest) set(c *identity.Cache, id mesh.Identity) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.done || i.id == id {
		return
	}
	c.Prefetch(id)
	if !i.id.IsZero() {
		c.Forget(i.id)
	}
	i.id = id
}

func (i *interest) drop(c *identity.Cache) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.done = true; !i.id.IsZero() {
		c.Forget(i.id)
	}
}
