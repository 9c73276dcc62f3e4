// SPDX-License-Identifier: Apache-2.0

// Package cni is the node agent: it decides which of the node's pods are in the mesh, redirects their traffic inside their
// own network namespaces, hands the namespaces to the node's proxy, and writes down on the pod what is so. Pods that run
// are enrolled and released without a restart; a new pod is held by the CNI plugin (package plugin) until it is enrolled.
// What the rules are is capture's work, how the proxy is told zds's, where pods are read source's.
//
// Order (reference, "Node agent"): enrolment is namespace, rules, proxy, host, annotation; release is host, rules, proxy,
// annotation. The host's part lets kubelet's probes pass, where there is a kubelet. When the agent ends it leaves all of it in
// place, so that an upgrade of the agent interrupts nobody.
//
// Sources: Istio architecture/ambient/ztunnel-cni-lifecycle.md; reference, "ZDS", "CNI plugin", "Node agent".
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// Proxies is the node's proxy, or two of them while one replaces the other. zds.Server is one.
type Proxies interface {
	// Run serves proxies until ctx ends. The agent starts it when the snapshot is complete.
	Run(ctx context.Context) error
	Add(ctx context.Context, w zds.Workload, ns *netns.NS) error
	Del(ctx context.Context, uid string) error
}

// Rules changes the redirection in a pod's namespace; KernelRules does it for real.
type Rules interface {
	Apply(ctx context.Context, ns *netns.NS, p capture.Plan) (changed bool, err error)
	Diff(ctx context.Context, ns *netns.NS, p capture.Plan) ([]string, error)
	Remove(ctx context.Context, ns *netns.NS) error
	// Installed reports whether there is anything that Remove would take away.
	Installed(ctx context.Context, ns *netns.NS) (bool, error)
}

// Finder finds the namespace of a pod that runs. The caller closes it. A pod that has none is fs.ErrNotExist.
type Finder interface {
	Find(uid string) (*netns.NS, error)
}

// Annotator records on a pod that it is redirected.
type Annotator interface {
	// Set gives the pod's redirection annotation a value; setting what is set already costs nothing.
	Set(p PodRef, value string) error
	// Note writes down beside it what was last found amiss with the pod, and repaired or not.
	Note(p PodRef, drift string) error
	// Clear takes both away. A newer pod of the same name keeps its own.
	Clear(p PodRef) error
	// Recorded is the pods that have one, and its value.
	Recorded() map[PodRef]string
}

// PodRef names one incarnation of a pod.
type PodRef struct{ Namespace, Name, UID string }

func (p PodRef) String() string { return p.Namespace + "/" + p.Name }

// Config is what an agent needs. Fields without a stated default must be set.
type Config struct {
	Node      string // only pods of this node are touched
	Objects   source.Source
	Proxies   Proxies
	Rules     Rules
	Netns     Finder
	Annotator Annotator

	// Host lets kubelet's probes pass; nil: there is no kubelet.
	Host Host
	// ProbeSource is where they come from then, to the host and to pods.
	ProbeSource capture.ProbeSource

	// OpenNetns opens a namespace by the path that the runtime gave the plugin; nil means netns.Open.
	OpenNetns func(path string) (*netns.NS, error)
	// HostNetns is never touched, whatever a pod claims; nil: no namespace is protected.
	HostNetns         *netns.NS
	ExcludeNamespaces []string
	// DNSCapture also redirects DNS queries, unless a pod's annotation says otherwise.
	DNSCapture bool

	// AdmitTimeout is how long a pod's start is held while the proxy is away; 0 means 4 s, less than the plugin waits.
	AdmitTimeout time.Duration
	Drift        Drift

	// BackoffMin and BackoffMax bound the wait before a pod is tried again; 0 means 5 ms and 5 s.
	BackoffMin, BackoffMax time.Duration

	Readiness *admin.Readiness // may be nil
	Metrics   *telemetry.AgentMetrics
	Log       *slog.Logger
}

func (c *Config) setDefaults() {
	if c.AdmitTimeout == 0 {
		c.AdmitTimeout = 4 * time.Second
	}
	if c.BackoffMin == 0 {
		c.BackoffMin = 5 * time.Millisecond
	}
	if c.BackoffMax == 0 {
		c.BackoffMax = 5 * time.Second
	}
	if c.OpenNetns == nil {
		c.OpenNetns = netns.Open
	}
	if c.Readiness == nil {
		c.Readiness = admin.NewReadiness()
	}
	if c.Metrics == nil {
		c.Metrics = telemetry.NewAgentMetrics("")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Conditions of readiness.
const (
	condObjects = "objects" // pods and namespaces have been read
	condPods    = "pods"    // pods of an earlier agent have been taken over
	condPlugin  = "plugin"  // the plugin can ask
	workers     = 4         // pods handled at the same time
)

// Agent is one node's agent. Make it with New.
type Agent struct {
	cfg   Config
	queue *queue
	locks locks                // one holder per pod; whoever changes a pod's state holds it
	view  atomic.Pointer[view] // the node's pods as they are wanted

	probes probes

	suspects chan struct{} // holds a value while a look at all pods is asked for
	moved    chan struct{} // holds a value after pods came or went

	mu     sync.Mutex
	pods   map[string]state   // by uid; guarded by mu, changed only by the holder of the pod's lock
	drifts map[string]drifted // by uid; guarded by mu
}

// New checks nothing and does nothing yet.
func New(cfg Config) *Agent {
	cfg.setDefaults()
	for _, c := range []string{condObjects, condPods, condPlugin} {
		cfg.Readiness.Pend(c)
	}
	a := &Agent{cfg: cfg, queue: newQueue(cfg.BackoffMin, cfg.BackoffMax), pods: map[string]state{},
		suspects: make(chan struct{}, 1), moved: make(chan struct{}, 1), drifts: map[string]drifted{}}
	a.view.Store(&view{})
	return a
}

// Run takes over what an earlier agent left, then follows the objects, serves proxies, and answers the plugin on l, which
// it closes, until ctx ends. Redirection stays in place afterwards.
func (a *Agent) Run(ctx context.Context, l net.Listener) error {
	defer a.close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.cfg.Objects.Run(ctx) })
	g.Go(func() error {
		changed, err := a.begin(ctx)
		if err != nil {
			l.Close()
			return err
		}
		g.Go(func() error { return a.cfg.Proxies.Run(ctx) })
		g.Go(func() error { return a.servePlugin(ctx, l) })
		for range workers {
			g.Go(func() error { a.work(ctx); return nil })
		}
		g.Go(func() error { return a.watchDrift(ctx) })
		a.cfg.Readiness.Done(condPlugin)
		a.cfg.Metrics.SetReady(true)
		return a.follow(ctx, changed)
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("run agent of node %s: %w", a.cfg.Node, err)
	}
	return nil
}

// begin reads the objects for the first time and takes over the pods of an earlier agent.
func (a *Agent) begin(ctx context.Context) (changed <-chan struct{}, err error) {
	select {
	case <-a.cfg.Objects.Ready():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	a.cfg.Readiness.Done(condObjects)
	changed = a.cfg.Objects.Changed()
	a.observe(a.cfg.Objects.Load())
	if err := a.takeOver(ctx); err != nil {
		return nil, err
	}
	// What fails here is tried again with the next pod, and with the drift check.
	if _, err := a.syncProbes(ctx, true); err != nil && ctx.Err() == nil {
		a.cfg.Log.Error("kubelet's probes may not reach pods", "error", err)
	}
	a.cfg.Readiness.Done(condPods)
	return changed, nil
}

func (a *Agent) follow(ctx context.Context, changed <-chan struct{}) error {
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
		changed = a.cfg.Objects.Changed()
		a.observe(a.cfg.Objects.Load())
	}
}

func (a *Agent) work(ctx context.Context) {
	for {
		uid, ok := a.queue.get(ctx)
		if !ok {
			return
		}
		err := a.reconcile(ctx, uid)
		switch {
		case err == nil:
			a.queue.forget(uid)
		case ctx.Err() == nil:
			wait := a.queue.retry(uid)
			a.cfg.Log.Warn("pod not handled, trying again", "uid", uid, "error", err, "in", wait)
		}
		a.queue.done(uid)
	}
}

// close lets go of the namespaces, and of nothing that is in them.
func (a *Agent) close() {
	a.cfg.Metrics.SetReady(false)
	a.queue.close()
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid, s := range a.pods {
		s.ns.Close()
		delete(a.pods, uid)
	}
}

// Snapshot lists every pod whose namespace is redirected, for a proxy that connects. Pods that no proxy has acknowledged
// yet are tried at once: here is one.
func (a *Agent) Snapshot() []zds.Entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []zds.Entry
	for _, uid := range slices.Sorted(maps.Keys(a.pods)) {
		s := a.pods[uid]
		out = append(out, zds.Entry{Workload: s.workload, NS: s.ns})
		if !s.served {
			a.queue.add(uid)
		}
	}
	return out
}
