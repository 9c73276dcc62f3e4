// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// The agent finds the namespace of a pod that runs by the control groups of the node's processes, and these need not be in the
// namespaces of their pods: the wrong one was once taken, and the host's (istio/istio#55139).
var _ = Describe("a pod whose processes are in several network namespaces", func() {
	It("is enrolled in its own, and no other is touched", Label("CN-09"), func(ctx SpecContext) {
		w := shared()
		w.Needs(lab.CapInspect, lab.CapSignal, lab.CapPodCaps)
		node := w.Pod("shop/web").Node
		outside := pod(w, "outside", func(p *corev1.Pod) {
			p.Spec.NodeName, p.Labels[mesh.LabelDataplaneMode] = node, mesh.ModeNone
		})
		manifold := pod(w, "manifold", func(p *corev1.Pod) {
			p.Spec.NodeName, p.Spec.HostPID, p.Labels[mesh.LabelDataplaneMode] = node, true, mesh.ModeNone
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
				Capabilities:    &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN", "SYS_PTRACE"}},
				AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}, // the default one forbids to look into others' /proc
			}
		})
		apply(ctx, w, outside, manifold)
		for _, p := range []*corev1.Pod{outside, manifold} {
			_, err := w.WaitPod(ctx, lab.PodRef{Namespace: p.Namespace, Name: p.Name}, func(p lab.PodInfo) bool { return p.Ready })
			Expect(err).NotTo(HaveOccurred())
		}
		ref := lab.PodRef{Namespace: manifold.Namespace, Name: manifold.Name}
		for _, netns := range []string{workload.NewNamespace, "/proc/1/ns/net", fmt.Sprintf("/proc/%d/ns/net", process(ctx, w, ref, "ztunnel"))} {
			dwell(ctx, w, ref, netns)
		}
		captured := func(t lab.Target) bool {
			return strings.Contains(rules(ctx, w, t), fmt.Sprintf(":%d", mesh.PortPlaintext))
		}
		others := map[string]lab.Target{
			"the node": {Node: node}, "ztunnel": {Pod: lab.PodRef{Namespace: "istio-system", Name: "ztunnel-" + node}},
			"a pod outside the mesh": {Pod: lab.PodRef{Namespace: outside.Namespace, Name: outside.Name}},
		}
		Expect(captured(lab.Target{Pod: ref})).To(BeFalse(), "control: it is in no mesh yet")

		delete(manifold.Labels, mesh.LabelDataplaneMode)
		Expect(w.Apply(ctx, manifold)).To(Succeed())
		p := enrolled(ctx, w, ref.Namespace, ref.Name)
		check := func() {
			GinkgoHelper()
			Expect(captured(lab.Target{Pod: ref})).To(BeTrue())
			for name, t := range others {
				Expect(captured(t)).To(BeFalse(), "%s is captured", name)
			}
			Expect(w.Known(ctx, p)).To(Succeed())
			Expect(observe(ctx, w, p, url("http", w.Pod("shop/cart-1"), portHTTP))).To(expect.Tunnelled())
			Expect(observe(ctx, w, w.Pod("shop/mobile"), url("http", p, portHTTP))).To(expect.Tunnelled())
		}
		check()

		By("an agent that starts anew, and finds all pods again")
		agent := w.Daemon(node, lab.DaemonCNIAgent)
		Expect(agent.Restart(ctx)).To(Succeed())
		Expect(agent.Ready(ctx)).To(Succeed())
		check()
	}, SpecTimeout(world.Budget.LongSpec))
})

// process is the number of one of the node's processes by its program's name, as a pod sees it that shares the node's.
func process(ctx SpecContext, w *world.World, ref lab.PodRef, name string) int {
	GinkgoHelper()
	const proc = "/proc"
	out, err := w.Output(ctx, ref, topologies.WorkloadBinary, "look", proc)
	Expect(err).NotTo(HaveOccurred())
	var seen map[string]workload.Look
	Expect(json.Unmarshal(out, &seen)).To(Succeed())
	for _, entry := range seen[proc].Entries {
		pid, err := strconv.Atoi(entry)
		if err != nil {
			continue
		}
		comm, err := w.Output(ctx, ref, topologies.WorkloadBinary, "cat", fmt.Sprintf("%s/%d/comm", proc, pid))
		if err == nil && strings.TrimSpace(string(comm)) == name {
			return pid
		}
	}
	Fail("the node has no process " + name)
	return 0
}

// dwell has a process of a pod live in another network namespace until the scenario ends.
func dwell(ctx SpecContext, w *world.World, ref lab.PodRef, netns string) {
	GinkgoHelper()
	stay, leave := context.WithCancel(ctx)
	var errOut strings.Builder
	there, gone := &said{ready: make(chan struct{})}, make(chan error, 1)
	go func() {
		argv := []string{topologies.WorkloadBinary, workload.ElsewhereCommand, netns, topologies.WorkloadBinary, "serve", "--http", "18099"}
		_, err := w.Exec(stay, ref, argv, lab.Stdio{Out: there, Err: &errOut})
		gone <- err
	}()
	DeferCleanup(func() {
		leave()
		if err := <-gone; err != nil && !errors.Is(err, context.Canceled) {
			GinkgoWriter.Println("a process in", netns, "ended with", err)
		}
	})
	select {
	case <-there.ready:
	case err := <-gone:
		gone <- err
		Fail(fmt.Sprintf("no process in %s: %v %s", netns, err, errOut.String()))
	case <-ctx.Done():
	}
}

// said is a writer whose channel is closed by the first byte.
type said struct {
	ready chan struct{}
	once  sync.Once
}

func (s *said) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.ready) })
	return len(p), nil
}
