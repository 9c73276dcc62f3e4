// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/ambientlab/ambientlab/kindconfigs/install"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Options say which cluster a lab comes up on, and what is known of it. Where neither REST nor Kubeconfig is set, $KUBECONFIG
// or ~/.kube/config is read.
type Options struct {
	Kubeconfig string       // a file
	Context    string       // one of the file's; "" is its current one
	REST       *rest.Config // in the place of both

	// Direct is a host and a port, or "", at which this machine may reach the API server too, without what stands between them:
	// if it answers there, it is asked there.
	Direct string

	// Connections outlast the lab, for the next one on the cluster; REST, Kubeconfig and Context count for the first. nil: the lab has its
	// own.
	Connections *Connections

	Image string // of the mesh's daemons and of workloads; nodes have it, or can pull it. "" is install.DefaultImage
	Force bool   // bring labs up on a cluster whose namespace kube-system lacks the label LabelAllowed too

	// Nodes are the cluster's names of nodes by the topology's. nil gives the topology's nodes, in their order, the cluster's
	// workers by name, or all of its nodes if it has no workers.
	Nodes map[string]string

	// Host reaches the cluster's nodes. nil: nobody does, and what needs that is a capability that is missing.
	Host Host

	// Outside is what Host calls the machine that plays one of the topology's external hosts. nil: nobody plays them.
	Outside func(host string) string

	// NetworkPolicy says that the cluster's CNI enforces NetworkPolicy objects, which no API tells.
	NetworkPolicy bool

	// KubeProxyMode is that of the cluster's kube-proxy; "" is unknown, so that a topology that asks for one is refused.
	KubeProxyMode topologies.KubeProxyMode

	// PodNetwork says what the links of pods are like that are made now; "" is as always. The topology's pods that an earlier lab made with
	// other links are made again; daemons keep theirs.
	PodNetwork string

	Progress func(string) // what Up and Down are doing; may be nil
}

// Host runs commands on the cluster's nodes, as root and in the node's own namespaces. stdio.TTY is never set. When ctx ends
// the command ends, or at least its standard input does, and Exec returns: stdio may be written to for a moment longer.
type Host interface {
	// Exec runs argv on a node, which has the cluster's name, and returns its exit code. err says that it could not be run.
	Exec(ctx context.Context, node string, argv []string, stdio lab.Stdio) (exit int, err error)
}

// Driver is a lab.Driver on a cluster that stands. There can be one lab on a cluster at a time.
type Driver struct {
	o Options

	mu    sync.Mutex
	stand *stand // guarded by mu; nil: there is no lab
	caps  lab.Capabilities
}

var _ lab.Driver = (*Driver)(nil)

// New is a driver whose lab is not up yet.
func New(o Options) *Driver { return &Driver{o: o} }

// errNoLab is what every method says before Up and after Down.
var errNoLab = errors.New("the lab is not up")

// stand is a lab that comes up, is up, or goes down. Fields are set before others see it, but for what mu guards.
type stand struct {
	name    string
	spec    *topologies.Spec
	cluster *topologies.Cluster
	image   string
	host    Host
	outside func(host string) string
	say     func(string)
	log     *slog.Logger
	dir     string // for logs; removed at the end

	podNetwork string // Options.PodNetwork
	byNode     bool   // nodes start commands in workloads' pods, not the API server

	api            *client
	nodes          *nodes
	controlPlane   []string     // the cluster's names of nodes with an API server
	apiService     []netip.Addr // addresses of the service default/kubernetes
	serviceSubnets []netip.Prefix
	pods           *podWatch
	logs           *logs
	forwards       *forwards
	connections    *Connections
	ownConnections bool // that end with the lab
	fleet          *fleet

	mu    sync.Mutex
	given map[types.UID]given // guarded by mu; by pod
	kinds kindSet             // guarded by mu; of what the lab has applied or taken over

	namespaces map[string]bool // guarded by mu; that the lab made

	cuts map[cut]bool // guarded by mu
	away bool         // guarded by mu; the API server was stopped
}

func (d *Driver) standing() (*stand, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stand == nil {
		return nil, errNoLab
	}
	return d.stand, nil
}

// Up implements lab.Driver. The topology's external hosts, MTUs, networks and fixed addresses of pods are left out:
// Capabilities says so.
func (d *Driver) Up(ctx context.Context, spec *topologies.Spec, o lab.UpOptions) error {
	s, err := d.prepare(ctx, spec, o)
	var was parked
	if err == nil {
		err = d.o.proxies(spec)
	}
	if err == nil {
		was, err = s.vacant(ctx)
	}
	if err != nil {
		return fmt.Errorf("bring up %s: %w", spec.Name, err)
	}
	d.mu.Lock()
	d.stand = s
	d.mu.Unlock()
	if err := s.up(ctx, was, o.DaemonEnv); err != nil {
		gone, cancel := context.WithTimeout(context.WithoutCancel(ctx), downWithin)
		defer cancel()
		return errors.Join(fmt.Errorf("bring up %s: %w", spec.Name, err), d.Down(gone))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.caps = d.o.capabilities(s)
	return nil
}

// proxies refuses a mode of kube-proxy that the cluster is not known to have.
func (o Options) proxies(spec *topologies.Spec) error {
	if want := spec.Clusters[0].KubeProxyMode; want != "" && want != o.KubeProxyMode {
		return fmt.Errorf("kubeProxyMode %s: %w: a cluster's kube-proxy is not the lab's to set", want, lab.ErrUnsupported)
	}
	return nil
}

// prepare looks at the cluster and changes nothing.
func (d *Driver) prepare(ctx context.Context, spec *topologies.Spec, o lab.UpOptions) (*stand, error) {
	if len(spec.Clusters) != 1 {
		return nil, fmt.Errorf("this driver realises exactly one cluster, the topology has %d", len(spec.Clusters))
	}
	if spec.Debug.TLSKeys {
		return nil, errors.New("debug.tlsKeys: daemons on a cluster have no place to write secrets to; use the netns driver")
	}
	s := &stand{
		name: spec.Name, spec: spec, cluster: &spec.Clusters[0], image: cmp.Or(d.o.Image, install.DefaultImage), host: d.o.Host, outside: d.o.Outside, log: o.Log, byNode: o.ExecByNode && d.o.Host != nil, podNetwork: d.o.PodNetwork,
		given: map[types.UID]given{}, kinds: kindSet{}, cuts: map[cut]bool{}, namespaces: map[string]bool{},
	}
	s.say = s.progress(d.o.Progress)
	s.connections = d.o.Connections
	if s.ownConnections = s.connections == nil; s.ownConnections {
		s.connections = NewConnections()
	}
	var err error
	if s.api, err = s.connections.client(ctx, d.o); err != nil {
		return nil, err
	}
	s.say("looking at the cluster at " + s.api.config.Host)
	if err := s.look(ctx, d.o); err != nil {
		return nil, err
	}
	if s.dir, err = workDir(spec.Name, o.Dir); err != nil {
		return nil, err
	}
	s.logs, s.forwards, s.fleet = newLogs(s), newForwards(s), newFleet(s)
	return s, nil
}

// workDir is a directory of the lab's own.
func workDir(name, given string) (string, error) {
	if given == "" {
		return os.MkdirTemp("", "ambientlab-"+name+"-")
	}
	if err := os.Mkdir(given, 0o700); err != nil {
		return "", fmt.Errorf("make the lab's directory: %w", err)
	}
	return given, nil
}

func (s *stand) progress(to func(string)) func(string) {
	return func(what string) {
		if s.log != nil {
			s.log.Info(what)
		}
		if to != nil {
			to(what)
		}
	}
}

// Capabilities implements lab.Driver.
func (d *Driver) Capabilities() lab.Capabilities {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.caps
}

// capabilities are what the standing lab can do.
func (o Options) capabilities(s *stand) lab.Capabilities {
	v4, v6 := s.families()
	family := func(has bool, name string) string {
		if has {
			return ""
		}
		return "the cluster's pods have no " + name + " addresses"
	}
	node := ""
	if o.Host == nil {
		node = "commands cannot be run on the cluster's nodes (kube.Options.Host is not set)"
	}
	policy := ""
	if !o.NetworkPolicy {
		policy = "nothing says that the cluster's CNI enforces them (kube.Options.NetworkPolicy is not set)"
	}
	return lab.Capabilities{
		lab.CapIPv4: family(v4, "IPv4"), lab.CapIPv6: family(v6, "IPv6"), lab.CapPodCaps: "", lab.CapKubelet: "", lab.CapSignal: node,
		lab.CapCapture: node, lab.CapInspect: node, lab.CapLink: node, lab.CapNetworkPolicy: policy, lab.CapAPIServer: cmp.Or(node, s.apiServerMissing()),
		lab.CapExternal: "a Kubernetes cluster has no hosts beside its nodes that a topology could place",
		lab.CapImpair:   "the links between a cluster's nodes are not the lab's: it can cut them, not delay or lose packets",
		lab.CapMTU:      "the MTUs of a cluster's nodes are not the lab's to set",
		lab.CapNetworks: "a cluster's nodes are all on one network",
		lab.CapPodIPs:   "a cluster's CNI chooses the addresses of pods",
		lab.CapStopped:  "kubelet starts daemons again that end",
		lab.CapCAFiles:  "the authority's keys are a Secret, which pods do not see",
		lab.CapTLSKeys:  "daemons on a cluster have no place to write secrets to",
		lab.CapProcess:  "daemons are processes of a cluster's nodes",
	}
}

// families says which addresses the topology's pods have.
func (s *stand) families() (v4, v6 bool) {
	for _, p := range s.pods.list(s.ours) {
		for _, ip := range p.Status.PodIPs {
			addr, err := netip.ParseAddr(ip.IP)
			v4 = v4 || err == nil && addr.Is4()
			v6 = v6 || err == nil && addr.Is6()
		}
	}
	return v4, v6
}
