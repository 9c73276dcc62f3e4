// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// meshed reports whether the pod's labels ask for the mesh. It only decides who waits for whom; the plugin and the agent
// judge by themselves.
func (s *site) meshed(p *pod) bool {
	if p.role != roleApp {
		return false
	}
	o := p.object()
	if mode, ok := o.Labels[mesh.LabelDataplaneMode]; ok {
		return mode == mesh.ModeAmbient
	}
	ns := s.snapshot().Namespaces[p.ref.Namespace]
	return ns != nil && ns.Labels[mesh.LabelDataplaneMode] == mesh.ModeAmbient
}

// startAgent starts the node's agent and waits until it serves.
func (s *site) startAgent(ctx context.Context, n *node) error {
	if err := n.agent.Start(ctx); err != nil {
		return err
	}
	if err := s.awaitURL(ctx, n.ns, agentReady, n.agent); err != nil {
		return fmt.Errorf("start %s: %w", n.agent.name, err)
	}
	n.agentUp.reach()
	return nil
}

// awaitMesh blocks until the node's agent and ztunnel have been ready once, or ctx ends.
func (n *node) awaitMesh(ctx context.Context) {
	for _, m := range []*milestone{&n.agentUp, &n.ztunnelUp} {
		select {
		case <-m.reached:
		case <-ctx.Done():
		}
	}
}

func (s *site) podInfo(p *pod) lab.PodInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	return lab.PodInfo{
		PodRef: p.ref, UID: p.uid, Node: p.node.name, ServiceAccount: p.obj.Spec.ServiceAccountName, Labels: p.obj.Labels,
		IPs: append([]netip.Addr(nil), p.ips...), Ready: p.ready, Enrolled: s.enrolled(p), Problem: p.problem,
	}
}

// enrolled is what the agent's status file says.
func (s *site) enrolled(p *pod) bool {
	name := fileName(source.Key{Kind: "Pod", Namespace: p.ref.Namespace, Name: p.ref.Name})
	data, err := os.ReadFile(filepath.Join(s.dir.Status(lab.DaemonCNIAgent+"."+p.node.name), name))
	if err != nil {
		return false
	}
	var o corev1.Pod
	return json.Unmarshal(data, &o) == nil && o.Annotations[mesh.AnnotationRedirection] == mesh.RedirectionEnabled
}
