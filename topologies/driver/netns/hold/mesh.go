// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// excludedNamespaces are never enrolled, whatever their labels; plugin and agent are told the same.
var excludedNamespaces = []string{"kube-system"}

// meshed reports whether the pod's labels enrol it.
func (s *site) meshed(p *pod) bool {
	o := p.object()
	var labels map[string]string
	if ns := s.snapshot().Namespaces[p.ref.Namespace]; ns != nil {
		labels = ns.Labels
	}
	return ambient.Decide(ambient.Pod{
		Namespace: p.ref.Namespace, Labels: o.Labels, Annotations: o.Annotations, HostNetwork: o.Spec.HostNetwork,
	}, labels, excludedNamespaces).Enrol
}

// awaitEnrolled waits until the agent says that the pod is enrolled, as its labels ask for.
func (s *site) awaitEnrolled(ctx context.Context, p *pod) error {
	err := await(ctx, p.task(), func() (string, bool) { return "the agent has not enrolled it", s.enrolled(p) })
	if err != nil {
		return fmt.Errorf("start pod %s: %w", p.ref, err)
	}
	return nil
}

// startAgent starts the node's agent and waits until it serves.
func (s *site) startAgent(ctx context.Context, n *node) error {
	if _, err := n.agent.Start(ctx); err != nil {
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

// awaitControl blocks until the lab's control plane, if it has one, has been ready once and its service leads to it, or ctx
// ends. A ztunnel would only complain until then.
func (s *site) awaitControl(ctx context.Context) {
	if !slices.ContainsFunc(s.podList(), func(p *pod) bool { return p.role == roleControl }) {
		return
	}
	select {
	case <-s.controlUp.reached:
		_ = s.control.flush(ctx) // what goes wrong there is its own to say
	case <-ctx.Done():
	}
}

func (s *site) podInfo(p *pod) lab.PodInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	return lab.PodInfo{
		PodRef: p.ref, UID: p.uid, Node: p.node.name, ServiceAccount: p.obj.Spec.ServiceAccountName, Labels: p.obj.Labels,
		IPs: append([]netip.Addr{}, p.ips...), Ready: p.ready, Enrolled: s.enrolled(p), Problem: p.problem,
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
