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

	"github.com/ambientlab/ambientlab/kindconfigs/image"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Pool keeps the clusters of one process between its labs. The zero Pool is empty and ready; Close removes what it holds.
// Its methods may be called concurrently.
type Pool struct {
	// Keep has Close leave the clusters standing, with no lab but a mesh, for the pool of a later process: what a person wants
	// who runs a scenario again and again. `lab down` and `lab gc --all` remove them.
	Keep bool

	// Most bounds how many clusters there are at a time; 0 means DefaultMost.
	Most int

	mu    sync.Mutex
	spare []*owned // guarded by mu; the one that has waited longest is first
	live  int      // guarded by mu; clusters of this pool, with and without a lab

	begin sync.Mutex   // held while one of these is made; before mu
	tools tools        // guarded by begin; the zero value before the first lab
	built *image.Image // guarded by begin; of programs of that stamp
	stamp string       // guarded by begin
}

// begun are the tools, which are looked for once, and the mesh's image, which is made again once a program of it has changed.
func (p *Pool) begun(ctx context.Context, bin string) (tools, *image.Image, error) {
	if p == nil {
		p = &Pool{}
	}
	p.begin.Lock()
	defer p.begin.Unlock()
	if p.tools.bin != bin {
		t, err := findTools(ctx, bin)
		if err != nil {
			return t, nil, err
		}
		p.tools, p.built = t, nil
	}
	stamp, err := image.Stamp(bin)
	if err != nil || p.built == nil || stamp != p.stamp {
		img, err := image.Build(ctx, bin) // which says all that is missing
		if err != nil {
			return tools{}, nil, err
		}
		p.built, p.stamp = img, stamp
	}
	return p.tools, p.built, nil
}

// DefaultMost is how many clusters a Pool has at a time, or those of a parallel run together: of memory each takes about 800 MiB,
// and of a machine's inotify instances, of which there are 128 by default, one of three nodes 58.
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

// take is a spare cluster that can hold a lab of that shape: one with the topology's mesh, of those one with its mode of
// kube-proxy, and of those the smallest; nil if there is none.
func (p *Pool) take(s shape, topology string) *owned {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := -1
	for i, c := range p.spare {
		if c.holds(s) && (best < 0 || c.cost(s, topology) < p.spare[best].cost(s, topology)) {
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

// cost orders clusters by how little there is to do, and to waste.
func (c *cluster) cost(s shape, topology string) int {
	cost := c.Nodes
	if c.mode() != s.mode() {
		cost += 100
	}
	if c.topology != topology {
		cost += 1000
	}
	return cost
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
			kept := c.about()
			kept.Kept = true
			c.hangUp()
			errs = append(errs, c.dir.write(kept), c.lock.Close())
		} else {
			errs = append(errs, c.end(ctx))
		}
	}
	return errors.Join(errs...)
}

// adopt is a cluster that an earlier process kept and that can hold a lab of that shape, as take chooses; nil if there is none.
func adopt(ctx context.Context, t tools, s shape, topology string) (*owned, error) {
	all, err := records()
	if err != nil {
		return nil, err
	}
	var kept []*cluster
	for _, r := range all {
		_, mount := os.Stat(r.mount()) // an earlier version's clusters have none
		if a, err := r.read(); err == nil && mount == nil && a.Kept && a.Shape.holds(s) {
			kept = append(kept, &cluster{tools: t, shape: a.Shape, name: r.name(), dir: r, nodenet: a.Nodenet, mesh: a.Mesh, topology: a.Topology, links: a.Links})
		}
	}
	slices.SortFunc(kept, func(a, b *cluster) int { return a.cost(s, topology) - b.cost(s, topology) })
	for _, c := range kept {
		lock, err := c.dir.own()
		if err != nil {
			continue // another process was faster
		}
		err = c.findNodes(ctx)
		if err == nil && len(c.nodes) == c.Nodes {
			err = c.dir.write(c.about())
		}
		if err == nil && len(c.nodes) == c.Nodes {
			return &owned{cluster: c, lock: lock}, nil
		}
		lock.Close()
	}
	return nil, nil
}
