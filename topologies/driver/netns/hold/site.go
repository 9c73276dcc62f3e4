// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/child"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/cluster"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// site is a lab under construction or standing.
type site struct {
	dir       labdir.Dir
	bin       string
	hide      []string // set once: directories of the host that no pod sees
	log       *slog.Logger
	children  *child.Table
	work      *sync.WaitGroup
	run       context.Context // what a site runs ends with its holder, not with the request that started it
	spec      *topologies.Spec
	cluster   *topologies.Cluster
	daemonEnv map[string][]string

	issuer  *cluster.Issuer
	dns     *cluster.DNS
	control *controller
	under   underlay

	controlUp milestone // the control plane has been ready once

	mu        sync.Mutex
	nodes     map[string]*node     // guarded by mu; replaced once, when all of them stand
	objects   *source.Objects      // guarded by mu
	pods      map[lab.PodRef]*pod  // guarded by mu
	externals map[string]*external // guarded by mu
}

// newSite checks what this driver cannot realise.
func (h *holder) newSite(u *order.Up) (*site, error) {
	if u.Spec == nil || len(u.Spec.Clusters) != 1 {
		return nil, errors.New("this driver realises exactly one cluster")
	}
	issuer, err := cluster.NewIssuer()
	if err != nil {
		return nil, err
	}
	s := &site{
		issuer: issuer, dns: cluster.NewDNS(h.log), control: newController(), externals: map[string]*external{},
		dir: h.cfg.Dir, bin: h.cfg.Bin, hide: hidden(h.cfg.Dir, os.Getenv), log: h.log, children: h.children, work: &h.work, run: h.life,
		spec: u.Spec, cluster: &u.Spec.Clusters[0], daemonEnv: u.DaemonEnv,
		nodes: map[string]*node{}, controlUp: newMilestone(), objects: &source.Objects{}, pods: map[lab.PodRef]*pod{},
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.site != nil {
		return nil, errors.New("the lab is up already")
	}
	h.site = s
	return s, nil
}

func (h *holder) info() *order.Info {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.site == nil {
		return &order.Info{}
	}
	return &order.Info{Spec: h.site.spec, Capabilities: h.site.capabilities()}
}

func (s *site) capabilities() lab.Capabilities {
	family := func(has bool) string {
		if has {
			return ""
		}
		return "the topology's ipFamily is " + string(s.cluster.IPFamily)
	}
	return lab.Capabilities{
		lab.CapIPv4: family(s.cluster.IPFamily.Has4()), lab.CapIPv6: family(s.cluster.IPFamily.Has6()),
		lab.CapCapture: "", lab.CapInspect: "", lab.CapSignal: "", lab.CapLink: "", lab.CapExternal: "", lab.CapPodCaps: "",
		lab.CapNetworkPolicy: "", lab.CapImpair: "", lab.CapMTU: "", lab.CapNetworks: "", lab.CapPodIPs: "", lab.CapTLSKeys: "", lab.CapStopped: "", lab.CapCAFiles: "", lab.CapProcess: "",
		lab.CapKubelet:   "namespaces on this host have no kubelet: the driver starts pods itself",
		lab.CapAPIServer: "namespaces on this host have no API server: the mesh reads objects from files",
	}
}

// node finds a node.
func (s *site) node(name string) (*node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[name]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("no node %q", name)
}

func (s *site) nodeList() []*node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.nodes))
}

// pod finds a running pod.
func (s *site) pod(ref lab.PodRef) (*pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pods[ref]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("no pod %s", ref)
}

// podList is a snapshot of the pods, sorted.
func (s *site) podList() []*pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*pod
	for _, p := range s.pods {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *pod) int { return strings.Compare(a.ref.String(), b.ref.String()) })
	return list
}

func (s *site) podInfos() []lab.PodInfo {
	list := s.podList()
	infos := make([]lab.PodInfo, len(list))
	for i, p := range list {
		infos[i] = s.podInfo(p)
	}
	return infos
}
