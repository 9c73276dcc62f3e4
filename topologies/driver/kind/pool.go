// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
)

// Pool keeps the clusters of one process between its labs. The zero Pool is empty and ready; Close removes what it holds.
// Its methods may be called concurrently.
type Pool struct {
	// Keep has Close leave the clusters standing, empty, for the pool of a later process, which takes them up: what a person wants
	// who runs a scenario again and again. `lab down` and `lab gc --all` remove them.
	Keep bool

	mu    sync.Mutex
	spare []*owned
}

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

// maxSpare bounds how many clusters wait for a lab: each takes about 800 MiB.
const maxSpare = 2

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

// give takes a cluster that its lab has left clean. The one that waited longest goes when there are too many.
func (p *Pool) give(ctx context.Context, c *owned) error {
	p.mu.Lock()
	p.spare = append(p.spare, c)
	var extra *owned
	if len(p.spare) > maxSpare {
		extra, p.spare = p.spare[0], p.spare[1:]
	}
	p.mu.Unlock()
	if extra == nil {
		return nil
	}
	return extra.end(ctx)
}

// Close removes the clusters that no lab has.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	spare := p.spare
	p.spare = nil
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
