// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/dns"
	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/dataplane/xds"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// What readiness waits for.
const (
	pendingState = "state manager"
	pendingPods  = "workload proxy manager"
	pendingStop  = "termination" // never done
)

// Ztunnel is a node proxy.
type Ztunnel struct {
	shared
	manager   *manager
	readiness *admin.Readiness
	document  *document
	client    *xds.Client // nil without a control plane
	own       atomic.Pointer[ownProxy]

	quit     chan struct{} // closed to begin the drain
	quitOnce sync.Once
}

// New checks the configuration and makes a ztunnel; Run does everything else.
func New(cfg Config) (*Ztunnel, error) {
	cfg.setDefaults()
	if cfg.XDS.Address == "" && cfg.Local.Path == "" && len(cfg.Local.Inline) == 0 {
		return nil, errors.New("no configuration: neither a control plane nor a local document is named")
	}
	if cfg.CA.Address == "" && !cfg.CA.Fake {
		return nil, errors.New("no certificate authority is named")
	}
	if cfg.Dedicated == nil && cfg.ZDSPath == "" {
		return nil, errors.New("no node agent's socket is named")
	}
	z := &Ztunnel{
		shared:    shared{cfg: &cfg, catalog: catalog.New(), dns: dns.NewBudget(maxForwardedNames), metrics: telemetry.NewMetrics("ztunnel", cfg.Version), log: cfg.Log},
		readiness: admin.NewReadiness(pendingState, pendingPods),
		quit:      make(chan struct{}),
	}
	if n := cfg.HBONE.QueueBudget; n > 0 {
		z.queues = hbone.NewBudget(n)
	}
	format := "text"
	if cfg.AccessLogJSON {
		format = "json"
	}
	z.access = telemetry.NewAccessLog(cfg.AccessLog, format)
	z.access.SetLevel(cfg.Level)
	z.certs = identity.NewCache(identity.CacheConfig{Signer: signer(&cfg), Log: cfg.Log,
		BackoffMin: cfg.Time.Certificate.Min, BackoffMax: cfg.Time.Certificate.Max})
	z.manager = newManager(z.candidate, cfg.Time.Retry, managerHooks{
		ready:   func(ok bool) { z.pend(pendingPods, !ok) },
		counts:  z.metrics.SetProxies,
		started: z.metrics.ProxyStarted,
		stopped: z.metrics.ProxyStopped,
	}, cfg.Log)
	z.metrics.OnScrape(z.countLive)
	z.document = &document{Local: cfg.Local, store: z.catalog, work: &z.work, log: cfg.Log}
	if cfg.XDS.Address == "" {
		return z, nil
	}
	var err error
	z.client, err = z.newXDSClient()
	return z, err
}

func signer(cfg *Config) identity.Signer {
	if cfg.CA.Fake {
		return identity.NewFakeCA()
	}
	return identity.NewCAClient(identity.CAConfig{
		Address: cfg.CA.Address, ServerName: cfg.CA.ServerName, RootCAFile: cfg.CA.RootCAFile, TokenFile: cfg.CA.TokenFile,
		ClusterID: cfg.ClusterID, TTL: cfg.CA.TTL, Headers: cfg.CA.Headers,
	})
}

func (z *Ztunnel) pend(name string, pending bool) {
	if pending {
		z.readiness.Pend(name)
	} else {
		z.readiness.Done(name)
	}
}

// candidate is how the manager starts a pod's proxy.
func (z *Ztunnel) candidate(w zds.Workload, ns *netns.NS) candidate {
	return candidate{
		Workload: w,
		netns:    ns.Inode(),
		release:  func() { ns.Close() },
		start: func(ctx context.Context) (pod, error) {
			p, err := openProxy(ctx, &z.shared, Info{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}, ns)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
	}
}

// Run serves until ctx ends, somebody asks it to quit, or a part of it fails. Then it drains: no new connections, those
// that exist may go on until the deadline, and what is left is cut. It returns when all is gone.
func (z *Ztunnel) Run(ctx context.Context) error {
	defer z.access.Flush()
	own, err := netns.Current()
	if err != nil {
		return err
	}
	defer own.Close()
	if z.keepSource, err = preflight(ctx, own, z.cfg.Mark, z.cfg.PreserveSource, z.log); err != nil {
		return err
	}
	if err := z.loadDocument(); err != nil {
		return err
	}
	if err := z.openRevocations(); err != nil {
		return err
	}
	listeners, err := z.listen(ctx)
	if err != nil {
		return err
	}
	// Stopping is not cutting: only the end of base cuts.
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	g, base := errgroup.WithContext(base)
	z.startServices(base, g, listeners)
	stop, stopped := context.WithCancel(base)
	defer stopped()
	z.startPods(stop, base, g, own)
	select {
	case <-ctx.Done():
	case <-z.quit:
	case <-base.Done():
	}
	z.log.Info("draining", "deadline", z.cfg.Time.Drain.String())
	z.readiness.Pend(pendingStop)
	stopped()
	z.manager.Shutdown(base, z.cfg.Time.Drain)
	z.awaitOwn()
	cut()
	return g.Wait()
}

// loadDocument fails only if nothing in the document is good: one bad object must not keep a node's pods from the mesh.
func (z *Ztunnel) loadDocument() error {
	if z.cfg.Local.Path == "" && len(z.cfg.Local.Inline) == 0 {
		return nil
	}
	applied, err := z.document.load()
	if !applied {
		return err
	}
	z.document.report(applied, err)
	return nil
}

// startServices starts everything that lasts until the end.
func (z *Ztunnel) startServices(ctx context.Context, g *errgroup.Group, l admin.Listeners) {
	server := admin.New(admin.Config{
		Name: "ztunnel", Version: z.cfg.Version, Readiness: z.readiness, Metrics: z.metrics.Handler(), Dump: z.dump,
		Level: z.cfg.Level, Quit: func() { z.quitOnce.Do(func() { close(z.quit) }) }, Log: z.log,
		Sections: z.sections(), Process: z.cfg.Process,
	})
	g.Go(func() error { return server.Run(ctx, l) })
	g.Go(func() error { return z.certs.Run(ctx) })
	g.Go(func() error { return z.manager.Run(ctx) })
	g.Go(func() error { return z.watchCatalog(ctx) })
	g.Go(func() error { return z.document.watch(ctx) })
	if z.revoked != nil {
		g.Go(func() error { z.revoked.Watch(ctx); return nil })
		g.Go(func() error { return z.watchRevocations(ctx) })
	}
	if !z.cfg.CA.Fake && z.cfg.CA.RootCAFile != "" {
		g.Go(func() error { return z.watchRoots(ctx) })
	}
	if z.cfg.Relax != nil {
		g.Go(func() error { return z.work.relax(ctx, z.cfg.Relax) })
	}
	if z.client == nil {
		return
	}
	g.Go(func() error { return z.client.Run(ctx) })
}

// startPods starts what names the pods, once the configuration is known: a listener that opens before the policies have
// come would let everybody in, and would take connections from a ztunnel that knows better. It ends before the drain begins.
func (z *Ztunnel) startPods(ctx, base context.Context, g *errgroup.Group, own *netns.NS) {
	g.Go(func() error {
		if !z.awaitState(ctx) {
			return nil
		}
		if err := z.startOwn(ctx, base, g, own); err != nil {
			return err
		}
		if z.cfg.Dedicated == nil {
			return zds.NewClient(zds.ClientConfig{Path: z.cfg.ZDSPath, Handler: z.manager, Log: z.log,
				BackoffMin: z.cfg.Time.ZDS.Min, BackoffMax: z.cfg.Time.ZDS.Max}).Run(ctx)
		}
		return z.addDedicated(ctx, own)
	})
}

// awaitState waits until the control plane has answered for every type; a local document was loaded before. It reports
// false if ctx ends first.
func (z *Ztunnel) awaitState(ctx context.Context) bool {
	if z.client != nil {
		select {
		case <-z.client.Ready():
		case <-ctx.Done():
			return false
		}
	}
	z.readiness.Done(pendingState)
	return true
}

// addDedicated does for the one pod what the agent does for a node's.
func (z *Ztunnel) addDedicated(ctx context.Context, own *netns.NS) error {
	ns, err := own.Dup()
	if err != nil {
		return err
	}
	i := z.cfg.Dedicated
	w := zds.Workload{UID: i.Namespace + "/" + i.Name, Name: i.Name, Namespace: i.Namespace, ServiceAccount: i.ServiceAccount}
	if err := z.manager.Add(ctx, w, ns); err != nil {
		return err
	}
	return z.manager.SnapshotSent()
}

// countLive brings the byte counters up to date with the connections that go on.
func (z *Ztunnel) countLive() {
	z.proxies(func(p *proxy) { p.tracker.progress(z.metrics) })
	z.metrics.SetStaleCRL(z.revoked.State().Err != nil)
}

// watchCatalog shows every change of the catalog to every proxy.
func (z *Ztunnel) watchCatalog(ctx context.Context) error {
	for {
		changed, now := z.catalog.Changed(), z.catalog.Load()
		z.proxies(func(p *proxy) { p.refresh(now) })
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// listen opens the ztunnel's own three ports.
func (z *Ztunnel) listen(ctx context.Context) (admin.Listeners, error) {
	var l admin.Listeners
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	for _, p := range []struct {
		to   *net.Listener
		addr string
		what string
	}{{&l.Admin, z.cfg.Admin, "admin"}, {&l.Metrics, z.cfg.Metrics, "metrics"}, {&l.Readiness, z.cfg.Readiness, "readiness"}} {
		var err error
		if *p.to, err = c.Listen(ctx, "tcp", p.addr); err != nil {
			for _, open := range []net.Listener{l.Admin, l.Metrics, l.Readiness} {
				if open != nil {
					open.Close()
				}
			}
			return admin.Listeners{}, fmt.Errorf("open the %s port %s (is another ztunnel running here?): %w", p.what, p.addr, err)
		}
	}
	return l, nil
}

func (z *Ztunnel) newXDSClient() (*xds.Client, error) {
	c := z.cfg.XDS
	return xds.NewClient(xds.ClientConfig{
		Address: c.Address, ServerName: c.ServerName, RootCAFile: c.RootCAFile, TokenFile: c.TokenFile, Headers: c.Headers,
		ClusterID: z.cfg.ClusterID, Node: z.node(), Types: []string{xds.TypeAddress, xds.TypeAuthorization},
		Handler: &state{store: z.catalog, work: &z.work}, Log: z.log, BackoffMin: z.cfg.Time.XDS.Min, BackoffMax: z.cfg.Time.XDS.Max,
		Metrics: xds.Metrics{Message: z.metrics.XDSMessage, Terminated: z.metrics.XDSTerminated},
	})
}

// node is how the control plane knows this ztunnel (A2.1).
func (z *Ztunnel) node() xds.Node {
	p := z.cfg.Pod
	md := map[string]any{}
	for k, v := range z.cfg.XDS.Metadata {
		md[k] = v
	}
	for k, v := range map[string]string{
		"NAME": p.Name, "NAMESPACE": p.Namespace, "NODE_NAME": z.cfg.Node, "CLUSTER_ID": z.cfg.ClusterID,
	} {
		if v != "" {
			md[k] = v
		}
	}
	ip := ""
	if p.IP.IsValid() {
		ip = p.IP.String()
		md["INSTANCE_IPS"] = ip
	}
	return xds.Node{ID: fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.%s", ip, p.Name, p.Namespace, p.Namespace, z.cfg.ClusterDomain), Metadata: md}
}
