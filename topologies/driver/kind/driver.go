// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/kindconfigs/image"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/kube"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/programs"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Options say how a lab relates to this process. The zero value is good.
type Options struct {
	Image    string       // the node image; "" is DefaultImage
	CNI      CNI          // of the cluster; the zero value is what the node image brings
	Pool     *Pool        // where clusters come from and go to; nil: each lab makes its own
	Detach   bool         // the lab outlasts this process, until Down of one that attached
	Name     string       // of the lab and its cluster; "" chooses one that is free
	Progress func(string) // what Up is doing; may be nil
}

// Driver is a lab.Driver of a kind cluster. All but its beginning and its end is package kube's.
type Driver struct {
	*kube.Driver // nil before Up
	o            Options

	mu      sync.Mutex
	cluster *owned // guarded by mu; nil before Up and after Down
}

var _ lab.Driver = (*Driver)(nil)

// New is a driver whose lab is not up yet.
func New(o Options) *Driver {
	if o.Image == "" {
		o.Image = DefaultImage
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return &Driver{o: o, Driver: kube.New(kube.Options{})}
}

// Up implements lab.Driver.
func (d *Driver) Up(ctx context.Context, spec *topologies.Spec, o lab.UpOptions) (err error) {
	if len(spec.Clusters) != 1 {
		return fmt.Errorf("bring up %s: this driver realises exactly one cluster, the topology has %d", spec.Name, len(spec.Clusters))
	}
	if spec.Debug.TLSKeys {
		return errors.New("debug.tlsKeys: daemons on a cluster have no place to write secrets to; use the netns driver")
	}
	if err := d.fits(spec); err != nil {
		return fmt.Errorf("bring up %s: %w", spec.Name, err)
	}
	bin, err := programs.Find(o.Bin, image.Programs...)
	if err != nil {
		return fmt.Errorf("bring up %s: %w", spec.Name, err)
	}
	t, img, err := d.o.Pool.begun(ctx, bin)
	if err != nil {
		return fmt.Errorf("bring up %s: %w", spec.Name, err)
	}
	if err := t.proxies(ctx, shapeOf(&spec.Clusters[0], d.o.Image)); err != nil { // before another cluster goes for it
		return fmt.Errorf("bring up %s: %w", spec.Name, err)
	}
	c, err := d.acquire(ctx, t, spec)
	if err != nil {
		return fmt.Errorf("bring up %s: %w", spec.Name, err)
	}
	d.mu.Lock()
	d.cluster = c
	d.mu.Unlock()
	if err := d.install(ctx, spec, o, img); err != nil {
		return errors.Join(fmt.Errorf("bring up %s: %w", spec.Name, err), d.discard(context.WithoutCancel(ctx)))
	}
	return nil
}

// fits says what keeps the lab from serving a topology, as far as that is known without a cluster.
func (d *Driver) fits(spec *topologies.Spec) error {
	links, err := linksOf(spec)
	if len(links) > 0 && d.o.CNI.asked() {
		err = errors.Join(err, fmt.Errorf("MTUs: %w: %s", lab.ErrUnsupported, notNodenet))
	}
	return errors.Join(d.o.CNI.fits(&spec.Clusters[0]), err)
}

// acquire is a cluster of the pool, or a new one.
func (d *Driver) acquire(ctx context.Context, t tools, spec *topologies.Spec) (*owned, error) {
	want := shapeOf(&spec.Clusters[0], d.o.Image)
	want.CNI = d.o.CNI.installed
	if d.o.Pool != nil {
		if c := d.o.Pool.take(want, spec.Name); c != nil {
			return c, nil
		}
	}
	if err := t.plugins(ctx, d.o.Image, d.o.CNI); err != nil { // before another cluster goes for it
		return nil, err
	}
	if d.o.Pool == nil {
		return d.make(ctx, t, spec.Name, want)
	}
	if err := d.o.Pool.room(ctx); err != nil {
		return nil, err
	}
	c, err := adopt(ctx, t, want, spec.Name)
	if c == nil && err == nil {
		c, err = d.make(ctx, t, spec.Name, want)
	}
	if err != nil {
		d.o.Pool.gone()
	}
	return c, err
}

// make makes a cluster.
func (d *Driver) make(ctx context.Context, t tools, topology string, want shape) (*owned, error) {
	dir, lock, err := claim(ctx, t, d.o.Name, topology)
	if err != nil {
		return nil, err
	}
	c, err := create(ctx, t, dir, want, d.o.CNI, d.o.Progress)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &owned{cluster: c, lock: lock}, nil
}

// claim is the record of a new cluster, and its lock. What an owner of that name left when it was killed is removed.
func claim(ctx context.Context, t tools, name, topology string) (record, *os.File, error) {
	if name == "" {
		name = newName(topology)
	}
	dir, err := recordOf(fullName(name))
	if err != nil {
		return "", nil, err
	}
	lock, err := dir.own()
	if errors.Is(err, labdir.ErrTaken) || err == nil && dir.wanted() {
		err = fmt.Errorf("the name %s is taken: %w", strings.TrimPrefix(name, prefix), lab.ErrOccupied)
	}
	if err == nil && dir.used() {
		if err = (&cluster{tools: t, name: dir.name(), dir: dir}).delete(ctx); err == nil {
			lock.Close()
			lock, err = dir.own() // the directory is a new one
		}
	}
	if err != nil {
		lock.Close() // of nil too
		return "", nil, err
	}
	return dir, lock, nil
}

// install puts the mesh and the topology into the cluster.
func (d *Driver) install(ctx context.Context, spec *topologies.Spec, o lab.UpOptions, img *image.Image) error {
	c := d.cluster
	if err := c.proxy(ctx, shapeOf(&spec.Clusters[0], c.Image).mode(), d.o.Progress); err != nil {
		return err
	}
	if err := c.provide(img); err != nil {
		return err
	}
	g, each := errgroup.WithContext(ctx)
	g.Go(func() error { return c.load(each, img) })
	g.Go(func() error { return c.startOutside(each, spec.External) })
	if err := g.Wait(); err != nil {
		return err
	}
	options := d.options(ctx, spec, img.Ref, c)
	var err error
	if options.PodNetwork, err = c.setLinks(ctx, spec); err != nil {
		return err
	}
	d.Driver = kube.New(options)
	if err := d.Driver.Up(ctx, spec, o); err != nil {
		return err
	}
	if err := c.awaitNames(ctx, spec.External); err != nil { // meanwhile the mesh was installed
		return err
	}
	c.topology = spec.Name
	record := c.about()
	record.Detached, record.Nodes = d.o.Detach, c.nodes[:len(spec.Clusters[0].Nodes)]
	if err := c.dir.write(record); err != nil {
		return err
	}
	if d.o.Detach {
		lock := c.lock
		c.lock = nil
		return lock.Close()
	}
	return nil
}

func (d *Driver) options(ctx context.Context, spec *topologies.Spec, ref string, c *owned) kube.Options {
	nodes := map[string]string{}
	for i, n := range spec.Clusters[0].Nodes {
		nodes[n.Name] = c.nodes[i]
	}
	return kube.Options{
		Kubeconfig: c.dir.kubeconfig(), Direct: c.apiServer(ctx), Image: ref, Force: true, Connections: c.connected(), Nodes: nodes, Host: c.cluster, Outside: c.outsideName, NetworkPolicy: c.enforces(),
		KubeProxyMode: c.mode(), Progress: d.o.Progress,
	}
}

// Capabilities implements lab.Driver. External hosts are containers beside the nodes, and nodenet makes links of other MTUs.
func (d *Driver) Capabilities() lab.Capabilities {
	caps := maps.Clone(d.Driver.Capabilities())
	if caps != nil {
		caps[lab.CapExternal], caps[lab.CapMTU] = "", d.links()
	}
	return caps
}

// links is why the lab cannot set MTUs.
func (d *Driver) links() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cluster == nil {
		return "there is no cluster"
	}
	return d.cluster.mtuMissing()
}

// Down implements lab.Driver. A cluster that can be left clean, but for its mesh, goes back to the pool.
func (d *Driver) Down(ctx context.Context) error {
	d.mu.Lock()
	c := d.cluster
	d.mu.Unlock()
	if c == nil {
		return nil
	}
	if c.lock == nil { // it was left to whoever comes
		lock, err := c.dir.own()
		if err != nil {
			return fmt.Errorf("take down lab %s: %w", c.short(), ownedBy(err))
		}
		c.lock = lock
	}
	if d.o.Pool == nil {
		return d.discard(ctx)
	}
	if err := errors.Join(d.Driver.Park(ctx), c.stopOutside(ctx), c.clearLinks(ctx)); err != nil {
		d.o.Progress(fmt.Sprintf("%s is not clean and goes: %v", c.name, err))
		return d.discard(ctx)
	}
	d.mu.Lock()
	d.cluster = nil
	d.mu.Unlock()
	err := c.dir.write(c.about())
	d.o.Pool.give(c) // last: from now on it is the next lab's
	return err
}

// Leave is kube's, and ends what this process has running on nodes.
func (d *Driver) Leave() error {
	d.mu.Lock()
	c := d.cluster
	d.mu.Unlock()
	err := d.Driver.Leave() // sessions with pods may go through nodes
	if c != nil {
		c.hangUp()
	}
	return err
}

// discard removes the cluster, with all that is in it.
func (d *Driver) discard(ctx context.Context) error {
	d.mu.Lock()
	c := d.cluster
	d.cluster = nil
	d.mu.Unlock()
	if c == nil {
		return nil
	}
	d.o.Pool.gone()
	return errors.Join(d.Driver.Leave(), c.end(ctx))
}

// Name is what `lab --lab` calls the lab: its cluster's name without what all of ours begin with. "" before Up.
func (d *Driver) Name() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cluster == nil {
		return ""
	}
	return d.cluster.short()
}

// Kubeconfig is the path of the file with which kubectl reaches the lab's cluster; "" before Up.
func (d *Driver) Kubeconfig() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cluster == nil {
		return ""
	}
	return d.cluster.dir.kubeconfig()
}
