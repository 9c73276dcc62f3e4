// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/child"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// daemon is a process of the mesh, wherever it runs.
type daemon struct {
	task  *task
	ns    *netns.NS
	ready string // URL of its readiness check
	pod   *pod   // nil for the agent
}

// newAgent prepares the node's agent; it runs in the node's own namespaces.
func (s *site) newAgent(n *node) (*task, error) {
	set, err := child.CapabilitySet(nil, agentCapabilities, nil)
	if err != nil {
		return nil, err
	}
	env := override([]string{"PATH=" + podPath, "HOME=/root", "HOSTNAME=" + n.name, "NODE_NAME=" + n.name, "LOG_FORMAT=json"}, s.daemonEnv[lab.DaemonCNIAgent])
	return &task{
		name: lab.DaemonCNIAgent + " on " + n.name, init: n.init, log: s.dir.Log(lab.DaemonCNIAgent + "." + n.name), grace: podGrace,
		start: pause.Start{Argv: s.agentCommand(n), Env: env, Dir: "/", Bounds: &child.Bounds{Capabilities: set, NoNewPrivs: true}},
	}, nil
}

// daemon finds a daemon by node ("" for the control plane) and name.
func (s *site) daemon(nodeName, name string) (*daemon, error) {
	if name == lab.DaemonCNIAgent {
		if n, err := s.node(nodeName); err == nil {
			return &daemon{task: n.agent, ns: n.ns, ready: agentReady}, nil
		}
		return nil, fmt.Errorf("no daemon %s on node %q", name, nodeName)
	}
	if p := s.daemonPod(nodeName, name); p != nil {
		ready := ztunnelReady
		if p.role == roleControl {
			ready = controlReady
		}
		return &daemon{task: p.task(), ns: p.ns, ready: ready, pod: p}, nil
	}
	if nodeName == "" {
		return nil, fmt.Errorf("no daemon %s", name)
	}
	return nil, fmt.Errorf("no daemon %s on node %q", name, nodeName)
}

// daemonPod is the pod in which a daemon runs, nil if there is none yet. While a ztunnel is replaced, that is the old one until
// the new one is ready, and then the new one.
func (s *site) daemonPod(nodeName, name string) *pod {
	var found *pod
	for _, p := range s.podList() {
		if name == "" || p.role.daemon() != name || (p.role == roleZtunnel && p.node.name != nodeName) {
			continue
		}
		if p.task() == nil || p.standby.Load() || (found != nil && p.lifetime.Err() != nil) {
			continue
		}
		found = p
		if p.lifetime.Err() == nil {
			break
		}
	}
	return found
}

func (s *site) daemonRequest(ctx context.Context, r *order.Daemon) (order.Reply, []*os.File, error) {
	d, err := s.daemon(r.Node, r.Name)
	if err != nil {
		return order.Reply{}, nil, err
	}
	switch r.Action {
	case order.ActionSignal:
		return order.Reply{}, nil, d.task.Signal(ctx, syscall.Signal(r.Signal))
	case order.ActionStop:
		return order.Reply{}, nil, d.task.Stop(ctx)
	case order.ActionStart:
		return order.Reply{}, nil, s.startDaemon(ctx, d, r.Env)
	case order.ActionReplace:
		return order.Reply{}, nil, s.replace(ctx, d, r.Env)
	case order.ActionReady:
		return order.Reply{}, nil, s.awaitURL(ctx, d.ns, d.ready, d.task)
	case order.ActionStatus:
		status, fd := d.task.Status()
		if fd == nil {
			return order.Reply{Status: &status}, nil, nil
		}
		return order.Reply{Status: &status}, []*os.File{fd}, nil
	}
	return order.Reply{}, nil, fmt.Errorf("unknown action %q", r.Action)
}

func (s *site) startDaemon(ctx context.Context, d *daemon, env []string) error {
	started, err := d.task.Start(ctx, env...)
	if err != nil {
		return err
	}
	if started != nil && d.pod != nil {
		s.restarted(d.pod, d.task, started)
	}
	return nil
}

// dial connects to a port of a daemon's loopback. The socket is made in the daemon's namespace, and handed over.
func (s *site) dial(ctx context.Context, r *order.Dial) ([]*os.File, error) {
	d, err := s.daemon(r.Node, r.Name)
	if err != nil {
		return nil, err
	}
	c, err := dialLoopback(ctx, d.ns, r.Port)
	if err != nil {
		return nil, fmt.Errorf("dial %s port %d: %w", d.task.name, r.Port, err)
	}
	defer func() { _ = c.Close() }()
	f, err := c.File()
	if err != nil {
		return nil, fmt.Errorf("dial %s port %d: %w", d.task.name, r.Port, err)
	}
	return []*os.File{f}, nil
}
