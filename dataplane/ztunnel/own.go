// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// ownProxy is the proxy of the ztunnel's own pod, where nothing is captured: peers that know that it speaks HBONE reach its
// metrics through a tunnel, and its policies hold for them (A7.3).
type ownProxy struct {
	*proxy
	done chan struct{} // closed when it is gone
}

// startOwn serves the ztunnel's own pod, if it is known which that is, until stop ends, and then as long as a drain may last.
// The end of base cuts it.
func (z *Ztunnel) startOwn(stop, base context.Context, g *errgroup.Group, own *netns.NS) error {
	pod := z.cfg.Pod
	if z.cfg.Dedicated != nil || pod.Name == "" || pod.Namespace == "" || pod.ServiceAccount == "" {
		return nil
	}
	ns, err := own.Dup()
	if err != nil {
		return err
	}
	p := newProxy(&z.shared, Info{Name: pod.Name, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount}, ns)
	p.own = true
	if err := p.open(stop, mesh.PortHBONE, lane{serve: p.startHBONE}); err != nil {
		ns.Close()
		return err
	}
	o := &ownProxy{p, make(chan struct{})}
	z.own.Store(o)
	g.Go(func() error {
		defer close(o.done)
		p.run(base)
		return nil
	})
	g.Go(func() error {
		<-stop.Done()
		p.drain(z.cfg.Time.Drain)
		return nil
	})
	return nil
}

// awaitOwn waits until the own proxy's drain has ended.
func (z *Ztunnel) awaitOwn() {
	if o := z.own.Load(); o != nil {
		<-o.done
	}
}

// proxies calls do with every proxy that runs.
func (z *Ztunnel) proxies(do func(*proxy)) {
	z.manager.list(func(_ zds.Workload, running pod, _ error) {
		if p, ok := running.(*proxy); ok {
			do(p)
		}
	})
	if o := z.own.Load(); o != nil {
		do(o.proxy)
	}
}
