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
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/kindconfigs/image"
	"github.com/ambientlab/ambientlab/kindconfigs/shapes"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/kube"
	"github.com/ambientlab/ambientlab/topologies/workload/session"
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

	CNI installed `json:"cni,omitzero"`
}

func shapeOf(c *topologies.Cluster, image string) shape {
	return shape{Nodes: len(c.Nodes), IPFamily: c.IPFamily, PodSubnets: c.PodSubnets, ServiceSubnets: c.ServiceSubnets, Image: image, KubeProxyMode: c.KubeProxyMode}
}

// holds reports whether a lab of shape o can be had in a cluster of shape s, if need be with another mode of kube-proxy.
func (s shape) holds(o shape) bool {
	return s.Nodes >= o.Nodes && s.IPFamily == o.IPFamily && s.Image == o.Image && s.CNI == o.CNI &&
		slices.Equal(s.PodSubnets, o.PodSubnets) && slices.Equal(s.ServiceSubnets, o.ServiceSubnets)
}

// mode is kube-proxy's: kind's own, unless a topology asks for another.
func (s shape) mode() topologies.KubeProxyMode {
	return cmp.Or(s.KubeProxyMode, topologies.KubeProxyIPTables)
}

// config is kind's configuration of such a cluster, with a directory of this host that its nodes have too.
func (s shape) config(mount string, apiServerPort uint16) ([]byte, error) {
	return shapes.Cluster(shapes.ClusterOptions{
		Mount: mount, APIServerPort: apiServerPort, Nodes: s.Nodes, IPFamily: s.IPFamily, PodSubnets: s.PodSubnets, ServiceSubnets: s.ServiceSubnets,
		Image: s.Image, KubeProxyMode: string(s.KubeProxyMode), DisableDefaultCNI: s.CNI.asked(),
		Ephemeral: true, UnsafeSysctls: []string{"net.ipv4.tcp_tw_reuse"}, // for pods that use a local port again at once
	})
}

// said is what a person who waits for such a cluster is told.
func (s shape) said() string {
	text := fmt.Sprintf("%d nodes", s.Nodes)
	if s.CNI.asked() {
		text += " with the CNI " + s.CNI.Name
	}
	return text
}

// cluster is a kind cluster of ours.
type cluster struct {
	tools
	shape

	name    string
	dir     record
	nodes   []string // containers, the control plane first
	nodenet bool     // the node image brings that; see ownPodNetwork
	mesh    string   // the mesh image that was loaded last

	topology string // whose lab it has, or whose mesh the last one left; "" is none
	links    bool   // nodenet was asked for other links than Ethernet's

	mu       sync.Mutex
	sessions map[string]*session.Lasting // guarded by mu; by node, or container beside the nodes

	connections *kube.Connections // guarded by mu; nil before the first lab
	api         string            // guarded by mu; see apiServer
}

// about is what there is to be recorded of a cluster without a lab.
func (c *cluster) about() about {
	return about{Shape: c.shape, Nodenet: c.nodenet, Mesh: c.mesh, Topology: c.topology, Links: c.links}
}

// short is the name without what all begin with.
func (c *cluster) short() string { return strings.TrimPrefix(c.name, prefix) }

func fullName(name string) string { return prefix + strings.TrimPrefix(name, prefix) }

// newName is a name that no other cluster has.
func newName(topology string) string {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + topology + "-" + hex.EncodeToString(b[:])
}

// apiServer is where the API server answers on the nodes' own network, of which this machine is a part where Docker's daemon runs
// on it and not in a virtual machine; "" if that is not known.
func (c *cluster) apiServer(ctx context.Context) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api == "" {
		c.api = c.findAPIServer(ctx)
	}
	return c.api
}

func (c *cluster) findAPIServer(ctx context.Context) string {
	both, err := c.addresses(ctx, c.name+"-control-plane")
	if err != nil {
		return ""
	}
	ip := both[0]
	if !cmp.Or(c.IPFamily, topologies.IPv4).Has4() {
		ip = both[1]
	}
	if ip == "" {
		return ""
	}
	return net.JoinHostPort(ip, apiServerPort)
}

// apiServerPort is kubeadm's.
const apiServerPort = "6443"

// create makes a cluster of a shape, whose CNI that is, and waits until its nodes are Ready. On error, or when ctx ends, nothing of it
// is left.
func create(ctx context.Context, t tools, dir record, s shape, cni CNI, say func(string)) (_ *cluster, err error) {
	c := &cluster{tools: t, shape: s, name: dir.name(), dir: dir}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir.mount(), 0o755); err != nil { //nolint:gosec // the record's own directory is nobody else's
		return nil, err
	}
	config, err := s.config(dir.mount(), port)
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
	began := time.Now()
	say(fmt.Sprintf("kind cluster %s: %s ...", c.name, s.said()))
	if err := c.start(ctx, config, cni, say); err != nil {
		return nil, err
	}
	say(fmt.Sprintf("kind cluster %s: nodes Ready after %.0f s", c.name, time.Since(began).Seconds()))
	return c, nil
}

// start has kind make what config says.
func (c *cluster) start(ctx context.Context, config []byte, cni CNI, say func(string)) error {
	network, budget := defaultNetworkBudget(), createBudget
	if cni.asked() {
		budget += network.ready
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	if _, err := c.run(ctx, bytes.NewReader(config), c.kind, "create", "cluster", "--name", c.name, "--kubeconfig", c.dir.kubeconfig(), "--config", "-"); err != nil {
		return err
	}
	if err := c.findNodes(ctx); err != nil {
		return err
	}
	var err error
	if c.nodenet, err = c.bringsNodenet(ctx); err != nil {
		return err
	}
	if cni.asked() {
		if err := c.network(ctx, cni, network, say); err != nil {
			return errors.Join(err, c.watchesRunOut(ctx))
		}
	}
	return c.awaitNodes(ctx)
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
	err := c.awaitEach(ctx, "create", readyBudget)
	if err == nil {
		err = c.awaitEach(ctx, "condition=Ready", readyBudget)
	}
	if err == nil && len(c.nodes) > 1 { // kind itself does it to the node of a cluster that has but one
		_, err = c.kubectl(ctx, "taint", "nodes", c.nodes[0], "node-role.kubernetes.io/control-plane-")
	}
	if err != nil {
		return errors.Join(err, c.watchesRunOut(ctx))
	}
	return nil
}

// awaitEach waits until every node is what kubectl's --for says.
func (c *cluster) awaitEach(ctx context.Context, what string, within time.Duration) error {
	wait := []string{"wait", "--for=" + what, "--timeout=" + within.String()}
	for _, n := range c.nodes {
		wait = append(wait, "node/"+n)
	}
	_, err := c.kubectl(ctx, wait...)
	return err
}

// kubectl runs the cluster's own kubectl, with its administrator's rights.
func (c *cluster) kubectl(ctx context.Context, argv ...string) (string, error) {
	return c.kubectlWith(ctx, nil, argv...)
}

// kubectlWith is kubectl with something to read, or nil.
func (c *cluster) kubectlWith(ctx context.Context, in io.Reader, argv ...string) (string, error) {
	return c.outputOf(ctx, c.nodes[0], in, append([]string{"kubectl", "--kubeconfig=/etc/kubernetes/admin.conf"}, argv...)...)
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

// nodePrograms are those that nodes and external hosts have.
var nodePrograms = []string{"capture", topologies.WorkloadBinary}

// linkPrograms is a shell's command that puts them where commands are looked for.
var linkPrograms = "ln -sf " + strings.Join(inMount(nodePrograms), " ") + " /usr/local/bin/"

func inMount(names []string) (paths []string) {
	for _, n := range names {
		paths = append(paths, path.Join(shapes.NodeMount, n))
	}
	return paths
}

// loadScript is what kind's own loading does in a node, whose containerd may have another snapshotter than overlayfs.
const loadScript = `[ -x %s ] || { echo "nodes do not have this machine's directory %s, or may not execute what is in it: Docker's daemon must see it" >&2; exit 1; }
%s
snapshotter=$(containerd config dump | sed -n "s/^ *snapshotter = [\"']\(.*\)[\"']/\1/p" | head -n 1)
ctr --namespace=k8s.io images import --digests --snapshotter="${snapshotter:-overlayfs}" %s`

// provide copies the programs to where nodes see them, unless those that go with the image are there.
func (c *cluster) provide(img *image.Image) error {
	if c.mesh == img.Ref {
		return nil
	}
	for _, p := range nodePrograms {
		if err := install(filepath.Join(c.bin, p), filepath.Join(c.dir.mount(), p)); err != nil {
			return err
		}
	}
	return nil
}

// load puts the mesh's image on every node, unless it is there. Nodes read it from a directory that they share with this host: `kind
// load` has the daemon hand on every byte to every node.
func (c *cluster) load(ctx context.Context, img *image.Image) error {
	if c.mesh == img.Ref {
		return nil
	}
	archive := filepath.Join(c.dir.mount(), "mesh.tar")
	if err := img.Save(archive); err != nil {
		return err
	}
	defer func() { _ = os.Remove(archive) }()
	script := fmt.Sprintf(loadScript, path.Join(shapes.NodeMount, topologies.WorkloadBinary), c.dir.mount(), linkPrograms, path.Join(shapes.NodeMount, filepath.Base(archive)))
	g, each := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		g.Go(func() error {
			_, err := c.output(each, n, "sh", "-c", script)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("load the mesh's image: %w", err)
	}
	c.mesh = img.Ref
	return c.dir.write(c.about())
}

// install copies a program. One that was there before may run meanwhile.
func install(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to+".new", data, 0o755); err != nil { //nolint:gosec // a program
		return err
	}
	return os.Rename(to+".new", to)
}

// delete removes the cluster, or what there is of it.
func (c *cluster) delete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, deleteBudget)
	defer cancel()
	c.hangUp()
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
