// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
)

// Where a node's processes, and its pods', find what is the lab's. The paths are the node's own: /run is private there,
// so that nothing on the host can cover them.
const (
	binPath = "/run/ambientlab/bin"
	labPath = "/run/ambientlab/lab"
)

// sysctls of every namespace, set before any link is made in it.
var commonSysctls = []pause.Sysctl{
	// Duplicate address detection costs 1.65 s per link.
	{Name: "net.ipv6.conf.default.accept_dad", Value: "0"},
	{Name: "net.ipv6.conf.all.accept_dad", Value: "0"},
	{Name: "net.ipv6.conf.default.accept_ra", Value: "0"},
	{Name: "net.ipv6.conf.default.disable_ipv6", Value: "0"},
	{Name: "net.ipv6.conf.all.disable_ipv6", Value: "0"},
	// A strict filter drops what a proxy sends with another's address.
	{Name: "net.ipv4.conf.all.rp_filter", Value: "0"},
	{Name: "net.ipv4.conf.default.rp_filter", Value: "0"},
}

var nodeSysctls = append([]pause.Sysctl{
	{Name: "net.ipv4.ip_forward", Value: "1"},
	{Name: "net.ipv6.conf.all.forwarding", Value: "1"},
	{Name: "net.ipv6.conf.default.forwarding", Value: "1"},
}, commonSysctls...)

const nodeNamespaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS

// node is a network, mount and UTS namespace with its own /run and /etc/cni.
type node struct {
	name    string
	index   int
	subnets []netip.Prefix // of its pods, one per family

	init  *pause.Handle
	ns    *netns.NS
	agent *task

	agentUp, ztunnelUp milestone
}

// milestone is something that is reached once.
type milestone struct {
	once    sync.Once
	reached chan struct{}
}

func newMilestone() milestone { return milestone{reached: make(chan struct{})} }

func (m *milestone) reach() { m.once.Do(func() { close(m.reached) }) }

func (s *site) startNode(ctx context.Context, index int) (*node, error) {
	n := &node{
		name: s.cluster.Nodes[index].Name, index: index, subnets: s.cluster.NodePodSubnets(index),
		agentUp: newMilestone(), ztunnelUp: newMilestone(),
	}
	if err := s.makeNodeDirs(n); err != nil {
		return nil, fmt.Errorf("start node %s: %w", n.name, err)
	}
	var err error
	if n.init, err = s.launch("node."+n.name, nodeNamespaces); err != nil {
		return nil, fmt.Errorf("start node %s: %w", n.name, err)
	}
	if n.ns, err = netns.Open(nsPath(n.init)); err != nil {
		return nil, fmt.Errorf("start node %s: %w", n.name, err)
	}
	err = n.init.SetUp(ctx, pause.Setup{
		Hostname: n.name, Reaper: true, Sysctls: nodeSysctls,
		Binds: []pause.Bind{
			{Source: s.dir.Node(n.name, "run"), Target: "/run", Private: true},
			{Source: s.dir.Node(n.name, "run"), Target: "/var/run", Private: true},
			{Source: s.dir.Node(n.name, "cni"), Target: "/etc/cni", Private: true},
			{Source: s.bin, Target: binPath, ReadOnly: true},
			{Source: string(s.dir), Target: labPath},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", n.name, err)
	}
	conf := s.cluster.Nodes[index]
	err = s.join(ctx, machine{
		nth: 1 + index, name: n.name, ns: n.ns, network: conf.Network, pods: n.subnets, mtu: conf.MTU, plain: conf.PlainPackets,
	})
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", n.name, err)
	}
	n.agent, err = s.newAgent(n)
	return n, err
}

// makeNodeDirs gives the node a /run that is no directory of the host's: sockets and state in it end with the lab.
func (s *site) makeNodeDirs(n *node) error {
	run := s.dir.Node(n.name, "run")
	for _, dir := range []string{run, s.dir.Node(n.name, "cni", "net.d"), s.dir.Node(n.name, "netns"), s.dir.Node(n.name, "ipam")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	for _, dir := range []string{"ztunnel", "istio-cni"} {
		if err := os.Mkdir(s.dir.Node(n.name, "run", dir), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// launch starts an init. Its own output goes to the holder's log.
func (s *site) launch(name string, namespaces uintptr) (*pause.Handle, error) {
	h, err := pause.Launch(s.children, filepath.Join(s.bin, "pause"), []string{"pause", name}, namespaces, os.Stderr)
	if err != nil {
		return nil, fmt.Errorf("start init of %s: %w", name, err)
	}
	s.work.Go(h.Run)
	return h, nil
}

func nsPath(h *pause.Handle) string { return fmt.Sprintf("/proc/%d/ns/net", h.PID()) }
