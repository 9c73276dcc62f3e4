// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/kindconfigs/image"
	"github.com/ambientlab/ambientlab/kindconfigs/shapes"
	"github.com/ambientlab/ambientlab/topologies"
)

// prefix begins the names of all clusters that this package makes.
const prefix = "ambientlab-"

// Bounds of waiting for a new cluster.
const (
	createBudget = 4 * time.Minute
	readyBudget  = time.Minute
	deleteBudget = time.Minute
)

// shape is what a topology asks of a cluster.
type shape struct {
	Nodes          int                 `json:"nodes"`
	IPFamily       topologies.IPFamily `json:"ipFamily"`
	PodSubnets     []netip.Prefix      `json:"podSubnets"`
	ServiceSubnets []netip.Prefix      `json:"serviceSubnets"`
	Image          string              `json:"image"` // the node image

	KubeProxyMode topologies.KubeProxyMode `json:"kubeProxyMode,omitempty"` // "" is iptables
}

func shapeOf(c *topologies.Cluster, image string) shape {
	return shape{Nodes: len(c.Nodes), IPFamily: c.IPFamily, PodSubnets: c.PodSubnets, ServiceSubnets: c.ServiceSubnets, Image: image, KubeProxyMode: c.KubeProxyMode}
}

// holds reports whether a lab of shape o can be had in a cluster of shape s, if need be with another mode of kube-proxy.
func (s shape) holds(o shape) bool {
	return s.Nodes >= o.Nodes && s.IPFamily == o.IPFamily && s.Image == o.Image &&
		slices.Equal(s.PodSubnets, o.PodSubnets) && slices.Equal(s.ServiceSubnets, o.ServiceSubnets)
}

// mode is kube-proxy's: kind's own, unless a topology asks for another.
func (s shape) mode() topologies.KubeProxyMode {
	return cmp.Or(s.KubeProxyMode, topologies.KubeProxyIPTables)
}

// cluster is a kind cluster of ours.
type cluster struct {
	tools
	shape

	name  string
	dir   record
	nodes []string // containers, the control plane first
	mesh  string   // the mesh image that was loaded last

	topology string // whose lab it has, or whose mesh the last one left; "" is none
}

// about is what there is to be recorded of a cluster without a lab.
func (c *cluster) about() about { return about{Shape: c.shape, Mesh: c.mesh, Topology: c.topology} }

// short is the name without what all begin with.
func (c *cluster) short() string { return strings.TrimPrefix(c.name, prefix) }

func fullName(name string) string { return prefix + strings.TrimPrefix(name, prefix) }

// newName is a name that no other cluster has.
func newName(topology string) string {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + topology + "-" + hex.EncodeToString(b[:])
}

// create makes a cluster and waits until its nodes are Ready. On error, or when ctx ends, nothing of it is left.
func create(ctx context.Context, t tools, dir record, s shape, say func(string)) (_ *cluster, err error) {
	c := &cluster{tools: t, shape: s, name: dir.name(), dir: dir}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	config, err := shapes.Cluster(shapes.ClusterOptions{
		APIServerPort: port, Nodes: s.Nodes, IPFamily: s.IPFamily, PodSubnets: s.PodSubnets, ServiceSubnets: s.ServiceSubnets, Image: s.Image, KubeProxyMode: string(s.KubeProxyMode),
		Ephemeral: true, UnsafeSysctls: []string{"net.ipv4.tcp_tw_reuse"}, // for pods that use a local port again at once
	})
	if err != nil {
		return nil, err
	}
	if _, err := t.run(ctx, nil, t.docker, "image", "inspect", s.Image); err != nil {
		return nil, fmt.Errorf("no node image %s: run `make node-image`: %w", s.Image, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.delete(context.WithoutCancel(ctx)))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, createBudget)
	defer cancel()
	began := time.Now()
	say(fmt.Sprintf("kind cluster %s: %d nodes ...", c.name, s.Nodes))
	if _, err := t.run(ctx, bytes.NewReader(config), t.kind, "create", "cluster", "--name", c.name, "--kubeconfig", dir.kubeconfig(), "--config", "-"); err != nil {
		return nil, err
	}
	if err := c.findNodes(ctx); err != nil {
		return nil, err
	}
	if err := c.awaitNodes(ctx); err != nil {
		return nil, err
	}
	say(fmt.Sprintf("kind cluster %s: nodes Ready after %.0f s", c.name, time.Since(began).Seconds()))
	return c, nil
}

// Ports of this host for API servers: below those that Linux gives to connections, of which one could take a port between its
// choice and its use.
const firstPort, lastPort = 20000, 32767

// freePort is one of those that nobody listens on.
func freePort() (uint16, error) {
	var err error
	for range 100 {
		port := firstPort + mathrand.N(lastPort-firstPort+1)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			return uint16(port), l.Close()
		}
	}
	return 0, fmt.Errorf("look for a free port from %d to %d: %w", firstPort, lastPort, err)
}

// findNodes lists the cluster's containers. kind names them <cluster>-control-plane, -worker, -worker2 and so on.
func (c *cluster) findNodes(ctx context.Context) error {
	out, err := c.run(ctx, nil, c.kind, "get", "nodes", "--name", c.name)
	if err != nil {
		return err
	}
	c.nodes = strings.Fields(out)
	slices.SortFunc(c.nodes, func(a, b string) int { return nodeRank(a) - nodeRank(b) })
	return nil
}

// nodeRank orders nodes as their names count them.
func nodeRank(name string) int {
	if strings.HasSuffix(name, "-control-plane") {
		return 0
	}
	n := 1
	_, _ = fmt.Sscanf(name[strings.LastIndex(name, "-worker")+len("-worker"):], "%d", &n) // the first has no number
	return n
}

// awaitNodes waits until every node has come to be and is Ready: kubeadm does not wait for a worker's Node to be there. The
// control plane's node takes pods like the others, since it is one of the topology's.
func (c *cluster) awaitNodes(ctx context.Context) error {
	wait := []string{"wait", "--timeout=" + readyBudget.String()}
	for _, n := range c.nodes {
		wait = append(wait, "node/"+n)
	}
	steps := [][]string{append(wait, "--for=create"), append(slices.Clone(wait), "--for=condition=Ready")}
	if len(c.nodes) > 1 { // kind itself does it to the node of a cluster that has but one
		steps = append(steps, []string{"taint", "nodes", c.nodes[0], "node-role.kubernetes.io/control-plane-"})
	}
	for _, argv := range steps {
		if _, err := c.kubectl(ctx, argv...); err != nil {
			return errors.Join(err, c.watchesRunOut(ctx))
		}
	}
	return nil
}

// kubectl runs the cluster's own kubectl, with its administrator's rights.
func (c *cluster) kubectl(ctx context.Context, argv ...string) (string, error) {
	return c.output(ctx, c.nodes[0], append([]string{"kubectl", "--kubeconfig=/etc/kubernetes/admin.conf"}, argv...)...)
}

// watchesRunOut is the usual reason why a node does not come up on a machine with many containers.
func (c *cluster) watchesRunOut(ctx context.Context) error {
	for _, n := range c.nodes {
		said, err := c.output(ctx, n, "journalctl", "--unit=kubelet", "--no-pager", "--lines=200")
		if err == nil && strings.Contains(said, "inotify_init: too many open files") {
			return errors.New("the machine's inotify instances are used up, kubelet cannot start: end other clusters and labs, run fewer processes (PROCS=1), or have its administrator raise fs.inotify.max_user_instances")
		}
	}
	return nil
}

// load puts the mesh's image and the packet recorder on every node, unless they are there.
func (c *cluster) load(ctx context.Context, img *image.Image) error {
	if c.mesh == img.Ref {
		return nil
	}
	archive := filepath.Join(string(c.dir), "mesh.tar")
	if err := img.Save(archive); err != nil {
		return err
	}
	defer func() { _ = os.Remove(archive) }()
	if _, err := c.run(ctx, nil, c.kind, "load", "image-archive", archive, "--name", c.name); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if _, err := c.run(ctx, nil, c.docker, "cp", filepath.Join(c.bin, "capture"), n+":/usr/local/bin/capture"); err != nil {
			return err
		}
	}
	c.mesh = img.Ref
	return c.dir.write(c.about())
}

// delete removes the cluster, or what there is of it.
func (c *cluster) delete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, deleteBudget)
	defer cancel()
	for {
		if err := c.stopOutside(ctx); err != nil {
			return err
		}
		if _, err := c.run(ctx, nil, c.kind, "delete", "cluster", "--name", c.name, "--kubeconfig", c.dir.kubeconfig()); err != nil {
			return err
		}
		left, err := c.run(ctx, nil, c.docker, "ps", "--all", "--quiet", "--filter", "label=io.x-k8s.kind.cluster="+c.name)
		if err != nil {
			return err
		}
		if left == "" {
			return c.dir.remove()
		}
	} // the daemon was still making one when its maker was interrupted
}
