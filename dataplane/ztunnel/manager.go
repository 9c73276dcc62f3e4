// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

var (
	errStopping       = errors.New("ztunnel is stopping")
	errKeepAfter      = errors.New("protocol error: keep after the snapshot")
	errSecondSnapshot = errors.New("protocol error: second snapshot on one connection")
)

// pod is one pod's proxy as the manager sees it.
type pod interface {
	// run serves until drain ends or ctx does, and returns when everything the proxy made is gone.
	run(ctx context.Context)
	// drain makes run return: at once if grace is 0, else when the last connection is done, at most grace later.
	drain(grace time.Duration)
}

// candidate is a pod that the agent has named, and how to start its proxy.
type candidate struct {
	zds.Workload
	netns uint64 // its namespace's inode
	// start makes the proxy and its listeners; it may be called again after an error.
	start func(ctx context.Context) (pod, error)
	// release gives back the namespace of a candidate that was never started.
	release func()
}

// managed is a pod with its proxy, or without one while the start keeps failing.
type managed struct {
	candidate
	proxy pod // nil while pending
	err   error
	done  chan struct{} // closed when run has returned
}

// managerHooks tell the rest of the daemon what happens; all are called with the manager's lock held.
type managerHooks struct {
	ready   func(bool)                // the snapshot is complete and no pod is pending
	counts  func(active, pending int) // after every change
	started func()
	stopped func()
}

// manager owns the proxies of a node's pods and follows the agent's word about which there are (reference: A3).
// Its exported methods are zds.Handler, called from one goroutine.
type manager struct {
	open  func(zds.Workload, *netns.NS) candidate // set once
	retry time.Duration                           // set once
	hooks managerHooks                            // set once
	log   *slog.Logger                            // set once

	launch chan *managed // started proxies, to Run
	ended  chan struct{} // closed when Run takes no more

	mu     sync.Mutex
	pods   map[string]*managed // by uid
	seen   map[string]bool     // named since the connection began; nil after the snapshot
	synced bool
	closed bool
}

func newManager(open func(zds.Workload, *netns.NS) candidate, retry time.Duration, hooks managerHooks, log *slog.Logger) *manager {
	return &manager{
		open: open, retry: retry, hooks: hooks, log: log,
		launch: make(chan *managed), ended: make(chan struct{}), pods: make(map[string]*managed), seen: make(map[string]bool),
	}
}

// Run runs the proxies and retries the pending ones until ctx ends; then every proxy is cut and waited for.
func (m *manager) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				close(m.ended) // before mu is waited for: start may hold it while it sends
				m.close()
				return nil
			case p := <-m.launch:
				g.Go(func() error {
					defer close(p.done)
					p.proxy.run(ctx)
					return nil
				})
			}
		}
	})
	g.Go(func() error {
		t := time.NewTicker(m.retry)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
				m.retryPending(ctx)
			}
		}
	})
	return g.Wait()
}

// Add starts a proxy for w in ns, which it takes over. The same pod in the same namespace is left alone.
func (m *manager) Add(ctx context.Context, w zds.Workload, ns *netns.NS) error {
	return m.add(ctx, m.open(w, ns))
}

func (m *manager) add(ctx context.Context, c candidate) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		c.release()
		return errStopping
	}
	if m.seen != nil {
		m.seen[c.UID] = true
	}
	if old := m.pods[c.UID]; old != nil {
		if old.proxy != nil && old.netns == c.netns {
			c.release()
			return nil
		}
		m.drop(old)
	}
	p := &managed{candidate: c}
	m.pods[c.UID] = p
	defer m.publish()
	return m.start(ctx, p)
}

// start is called with mu held.
func (m *manager) start(ctx context.Context, p *managed) error {
	proxy, err := p.start(ctx)
	if err != nil {
		p.err = fmt.Errorf("start proxy of %s/%s (%s): %w", p.Namespace, p.Name, p.UID, err)
		return p.err
	}
	p.proxy, p.err, p.done = proxy, nil, make(chan struct{})
	if !m.hand(ctx, p) {
		// Nobody will run it: run it into its end here, so that its sockets are closed.
		proxy.drain(0)
		proxy.run(ctx)
		delete(m.pods, p.UID)
		return fmt.Errorf("start proxy of %s/%s (%s): %w", p.Namespace, p.Name, p.UID, errStopping)
	}
	m.hooks.started()
	m.log.Info("proxy started", "uid", p.UID, "namespace", p.Namespace, "name", p.Name, "netns", p.netns)
	return nil
}

// hand gives p to Run.
func (m *manager) hand(ctx context.Context, p *managed) bool {
	select {
	case m.launch <- p:
		return true
	case <-m.ended:
	case <-ctx.Done():
	}
	return false
}

// drop is called with mu held.
func (m *manager) drop(p *managed) {
	delete(m.pods, p.UID)
	if p.proxy == nil {
		p.release()
		return
	}
	p.proxy.drain(0)
	m.hooks.stopped()
	m.log.Info("proxy stopped", "uid", p.UID, "namespace", p.Namespace, "name", p.Name, "netns", p.netns)
}

// Keep names a pod that the agent knows but has no namespace for: its proxy goes on as it is.
func (m *manager) Keep(uid string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.synced {
		return errKeepAfter
	}
	if m.pods[uid] == nil { // nothing to remember: an agent that names pods without end would only fill the memory
		m.log.Warn("agent keeps a pod that has no proxy here; waiting for its namespace", "uid", uid)
		return nil
	}
	m.seen[uid] = true
	return nil
}

// Del removes a pod. Before the snapshot it is merely forgotten, and dropped with it.
func (m *manager) Del(uid string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.synced {
		delete(m.seen, uid)
		return nil
	}
	if p := m.pods[uid]; p != nil {
		m.drop(p)
	}
	m.publish()
	return nil
}

// SnapshotSent drops every pod that was not named on this connection.
func (m *manager) SnapshotSent() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.synced {
		return errSecondSnapshot
	}
	for uid, p := range m.pods {
		if !m.seen[uid] {
			m.drop(p)
		}
	}
	m.synced, m.seen = true, nil
	m.publish()
	return nil
}

// Disconnected keeps all proxies running: the pods are still there, only their agent is not.
func (m *manager) Disconnected() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced, m.seen = false, make(map[string]bool)
	m.publish()
}

func (m *manager) retryPending(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	for _, p := range m.pods {
		if p.proxy != nil {
			continue
		}
		if err := m.start(ctx, p); err != nil {
			m.log.Warn("proxy still does not start; trying again", "error", err, "in", m.retry.String())
		}
	}
	m.publish()
}

// publish is called with mu held.
func (m *manager) publish() {
	active, pending := 0, 0
	for _, p := range m.pods {
		if p.proxy == nil {
			pending++
		} else {
			active++
		}
	}
	m.hooks.counts(active, pending)
	m.hooks.ready(m.synced && pending == 0 && !m.closed)
}

// Shutdown drains all proxies and waits until they are gone, or ctx ends. Nothing can be added afterwards.
func (m *manager) Shutdown(ctx context.Context, grace time.Duration) {
	for _, p := range m.refuse() {
		p.proxy.drain(grace)
		defer func() {
			select {
			case <-p.done:
			case <-ctx.Done():
			}
		}()
	}
}

// refuse marks the manager closed and returns the proxies that run.
func (m *manager) refuse() []*managed {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	var running []*managed
	for uid, p := range m.pods {
		if p.proxy != nil {
			running = append(running, p)
			continue
		}
		p.release()
		delete(m.pods, uid)
	}
	m.publish()
	return running
}

// close ends everything at once; the proxies' run ends with the context that Run was given.
func (m *manager) close() {
	for _, p := range m.refuse() {
		p.proxy.drain(0)
	}
}

// list calls yield for every pod, with its error if it is pending.
func (m *manager) list(yield func(w zds.Workload, proxy pod, err error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		yield(p.Workload, p.proxy, p.err)
	}
}
