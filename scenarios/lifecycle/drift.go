// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// look is how often the agent looks by itself here; 30 s otherwise.
const look = 300 * time.Millisecond

// A pod was once without its data plane for 29 days while everything called it enrolled (istio/istio#61182, open). Here the
// agent compares, on events and by time.
var _ = Describe("a captured pod that may change its own network", func() {
	It("loses its rules or its proxy only until the agent sees it", world.OwnLab, Label("LC-14"), func(ctx SpecContext) {
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{
			lab.DaemonCNIAgent: {"DRIFT_INTERVAL=" + look.String()},
		}})
		Expect(err).NotTo(HaveOccurred())
		l.Needs(lab.CapPodCaps, lab.CapInspect)
		root := privileged(ctx, l)
		inward, outward := at(root, "http", 8080), at(l.Pod("plain/ledger"), "http", 8080)
		Expect(observe(ctx, l, "shop/root", outward)).To(expect.PlainOutbound(), "control: it is captured")

		By("flushing its rules: they come back, and the repair is counted")
		flush(ctx, l, root)
		Eventually(drifts).WithContext(ctx).WithArguments(l, root.Node, "rules").WithTimeout(world.Budget.Propagation).Should(BeNumerically(">=", 1))
		Expect(observe(ctx, l, "shop/root", outward)).To(expect.PlainOutbound())
		Eventually(daemonLog).WithContext(ctx).WithArguments(l, root.Node, lab.DaemonCNIAgent, time.Time{}).WithTimeout(world.Budget.Evidence).Should(ContainElement(And(
			HaveField("Message", "pod drifted, repaired"), HaveField("Pod", HaveKeyWithValue("Name", "root")))))

		Eventually(func(ctx SpecContext) (string, error) {
			pod := l.ClonePod("shop/web", "root")
			err := l.Get(ctx, pod)
			return pod.Annotations["ambientlab.dev/drift"], err
		}).WithContext(ctx).WithTimeout(world.Budget.Evidence).Should(ContainSubstring("rules: "), "the pod says so itself")

		By("ending its proxy's listener: another is opened, and the repair is counted")
		_, err = l.Output(ctx, root.PodRef, "ss", "-K", "-t", "-l", "sport = :15008") // a pod without that program keeps its listener
		if absent := (*lab.StartError)(nil); !errors.As(err, &absent) {
			Expect(err).NotTo(HaveOccurred())
		}
		found, err := drifts(ctx, l, root.Node, "proxy")
		Expect(err).NotTo(HaveOccurred())
		if found == 0 && listens(ctx, l, root, 15008) {
			AddReportEntry("listeners", "the pod has no program ss, or its kernel lets nobody end another's sockets (CONFIG_INET_DIAG_DESTROY): the proxy stayed")
		} else {
			Eventually(drifts).WithContext(ctx).WithArguments(l, root.Node, "proxy").WithTimeout(world.Budget.Propagation).Should(BeNumerically(">=", 1))
			Expect(listens(ctx, l, root, 15008)).To(BeTrue())
		}
		Expect(observe(ctx, l, "shop/web", inward)).To(expect.Tunnelled())

		By("control: with the check off the pod stays bare, and speaks plain text past every proxy")
		agent := l.Daemon(root.Node, lab.DaemonCNIAgent)
		Expect(agent.Restart(ctx, "DRIFT_INTERVAL=0s")).To(Succeed())
		Expect(agent.Ready(ctx)).To(Succeed())
		flush(ctx, l, root)
		Consistently(func(ctx SpecContext) string {
			i, err := l.Inspect(ctx, lab.Target{Pod: root.PodRef})
			Expect(err).NotTo(HaveOccurred())
			return i.Rules
		}).WithContext(ctx).WithTimeout(2 * look).WithPolling(look / 3).ShouldNot(ContainSubstring("redirect"))
		Expect(observe(ctx, l, "shop/root", outward)).To(expect.Direct())
	}, SpecTimeout(world.Budget.LongSpec))
})

// privileged starts a captured pod that may change its network.
func privileged(ctx SpecContext, l *world.World) lab.PodInfo {
	GinkgoHelper()
	pod := l.ClonePod("shop/web", "root")
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}
	root, err := l.Join(ctx, pod)
	Expect(err).NotTo(HaveOccurred())
	return root
}

// flush removes a pod's rules, as who may change its network can.
func flush(ctx SpecContext, l *world.World, pod lab.PodInfo) {
	GinkgoHelper()
	out, err := l.Output(ctx, pod.PodRef, topologies.WorkloadBinary, "flush")
	Expect(err).NotTo(HaveOccurred(), "%s", out)
}

// drifts is how often a node's agent has found pods without their rules or their proxy, and repaired them.
func drifts(ctx SpecContext, l *world.World, node, kind string) (float64, error) {
	s, err := l.ScrapeDaemon(ctx, node, lab.DaemonCNIAgent)
	return s.Sum("ambientlab_cni_drift_total", map[string]string{"kind": kind, "outcome": "repaired"}), err
}

// listens reports whether something listens at a port of a pod.
func listens(ctx SpecContext, l *world.World, pod lab.PodInfo, port uint16) bool {
	GinkgoHelper()
	i, err := l.Inspect(ctx, lab.Target{Pod: pod.PodRef})
	Expect(err).NotTo(HaveOccurred())
	for line := range strings.Lines(i.Sockets) {
		if strings.Contains(line, "LISTEN") && (strings.Contains(line, netip.AddrPortFrom(netip.IPv6Unspecified(), port).String()) || strings.Contains(line, fmt.Sprintf("0.0.0.0:%d", port))) {
			return true
		}
	}
	return false
}
