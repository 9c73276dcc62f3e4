// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Pool keeps the clusters of one process between its labs. The zero Pool is empty and ready; Close removes what it holds.
// Its methods may be called concurrently.
type Pool struct {
	// Keep has Close leave the clusters standing, empty, for the pool of a later process, which takes them up: what a person wants
	// who runs a scenario again and again. `lab down` and `lab gc --all` remove them.
	Keep bool

	// Most bounds how many clusters there are at a time; 0 means DefaultMost.
	Most int

	mu    sync.Mutex
	spare []*owned // guarded by mu; the one that has waited longest is first
	live  int      // guarded by mu; clusters of this pool, with and without a lab
}

// DefaultMost is how many clusters a Pool has at a time: of memory each takes about 800 MiB, and of a machine's inotify
// instances, of which there are 128 by default, a node takes 18.
const DefaultMost = 2

// owned is a cluster and the lock that says so.
type owned struct {
	*cluster
	lock *os.File
}

func (o *owned) end(ctx context.Context) error {
	err := o.delete(ctx)
	if o.lock == nil { // a detached one that failed to come up
		return err
	}
	return errors.Join(err, o.lock.Close())
}

// take is a spare cluster that can hold a lab of that shape, the smallest; nil if there is none.
func (p *Pool) take(s shape) *owned {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := -1
	for i, c := range p.spare {
		if c.holds(s) && (best < 0 || c.Nodes < p.spare[best].Nodes) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	c := p.spare[best]
	p.spare = slices.Delete(p.spare, best, best+1)
	return c
}

// room makes room for one more cluster, for which of those that wait the first has to go. It is lab.ErrOccupied if labs have them
// all.
func (p *Pool) room(ctx context.Context) error {
	p.mu.Lock()
	if p.live < cmp.Or(p.Most, DefaultMost) {
		p.live++
		p.mu.Unlock()
		return nil
	}
	if len(p.spare) == 0 {
		p.mu.Unlock()
		return fmt.Errorf("%w: this process has %d clusters, and each has a lab", lab.ErrOccupied, p.live)
	}
	first := p.spare[0]
	p.spare = p.spare[1:]
	p.mu.Unlock()
	return first.end(ctx)
}

// gone is told that a cluster is not the pool's any more, or never came to be.
func (p *Pool) gone() {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.live--
	p.mu.Unlock()
}

// give takes a cluster that its lab has left clean.
func (p *Pool) give(c *owned) {
	p.mu.Lock()
	p.spare = append(p.spare, c)
	p.mu.Unlock()
}

// Close removes the clusters that no lab has.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	spare := p.spare
	p.spare, p.live = nil, p.live-len(spare)
	p.mu.Unlock()
	var errs []error
	for _, c := range spare {
		if p.Keep {
			errs = append(errs, c.dir.write(about{Shape: c.shape, Mesh: c.mesh, Kept: true}), c.lock.Close())
		} else {
			errs = append(errs, c.end(ctx))
		}
	}
	return errors.Join(errs...)
}

// adopt is a cluster that an earlier process kept and that can hold a lab of that shape; nil if there is none.
func adopt(ctx context.Context, t tools, s shape) (*owned, error) {
	all, err := records()
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		a, err := r.read()
		if err != nil || !a.Kept || !a.Shape.holds(s) {
			continue
		}
		lock, err := r.own()
		if err != nil {
			continue // another process was faster
		}
		c := &cluster{tools: t, shape: a.Shape, name: r.name(), dir: r, mesh: a.Mesh}
		err = c.findNodes(ctx)
		if err == nil && len(c.nodes) == a.Shape.Nodes {
			err = c.dir.write(about{Shape: c.shape, Mesh: c.mesh})
		}
		if err == nil && len(c.nodes) == a.Shape.Nodes {
			return &owned{cluster: c, lock: lock}, nil
		}
		lock.Close()
	}
	return nil, nil
}
