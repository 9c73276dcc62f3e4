// SPDX-License-Identifier: Apache-2.0

// Package security holds the scenarios about what must not be possible: traffic that escapes the mesh, calls that reach
// a proxy's own ports, and secrets that a pod could read.
package security

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var w = world.Shared()

var _ = Describe("a pod that should be in the mesh", func() {
	It("does not start while the agent cannot enrol it, and sends nothing in plain text", Label("SE-07"), func(ctx SpecContext) {
		w.Needs(lab.CapSignal)
		l, err := world.Start(ctx, "two-pods", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		agent := l.Daemon("node1", lab.DaemonCNIAgent)
		Expect(agent.Stop(ctx)).To(Succeed())
		late := l.ClonePod("shop/web", "late")
		Expect(l.Apply(ctx, late)).To(Succeed())
		ref := lab.PodRef{Namespace: "shop", Name: "late"}

		By("refusing the pod's network, and saying why")
		Eventually(l.PodProblem).WithContext(ctx).WithArguments(ref).WithTimeout(world.Budget.Propagation).
			Should(ContainSubstring("agent"))
		pod, err := l.Find(ctx, ref)
		Expect(err).NotTo(HaveOccurred())
		Expect(pod.Ready).To(BeFalse())

		By("letting it start once the agent is back, enrolled from its first packet")
		Expect(agent.Start(ctx)).To(Succeed())
		pod, err = l.WaitPod(ctx, ref, func(p lab.PodInfo) bool { return p.Ready && p.Enrolled })
		Expect(err).NotTo(HaveOccurred())
		obs, err := l.Observe(ctx, pod, fmt.Sprintf("http://%s", netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), 8080)), workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(obs).To(expect.Tunnelled())
	}, SpecTimeout(world.Budget.LongSpec))

	It("fails closed while its ztunnel is gone, and plain pods go on", Label("SE-07"), func(ctx SpecContext) {
		w.Needs(lab.CapSignal)
		l, err := world.Start(ctx, "two-pods", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		web := l.Pod("shop/web")
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), 8080))
		before, err := l.Observe(ctx, web, url, workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(before).To(expect.Tunnelled(), "control: with ztunnel it works")

		zt := l.Daemon("node1", lab.DaemonZtunnel)
		Expect(zt.Signal(ctx, syscall.SIGKILL)).To(Succeed())
		Eventually(func(ctx SpecContext) (bool, error) {
			s, err := zt.Status(ctx)
			return s.Running, err
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeFalse())
		res, err := l.Call(ctx, web.PodRef, url, workload.Options{Count: 20, Timeout: 2 * time.Second})
		Expect(err).NotTo(HaveOccurred())
		Expect(res.OK).To(BeZero(), "a captured pod must not reach anyone in plain text: %v", res.Errors)

		Expect(zt.Start(ctx)).To(Succeed())
		Expect(zt.Ready(ctx)).To(Succeed())
		after, err := l.Observe(ctx, web, url, workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(after).To(expect.Tunnelled())
	}, SpecTimeout(world.Budget.LongSpec))

	It("sees neither the lab's secrets nor other pods' tokens", Label("SE-07"), func(ctx SpecContext) {
		hidden := []string{w.Dir, w.Dir + "/hold.sock", w.Dir + "/ca", "/var/run/ztunnel", "/var/run/istio-cni"}
		const own = "/etc/hostname"
		out, err := w.Output(ctx, w.Pod("shop/web").PodRef, append([]string{"workload", "look", own}, hidden...)...)
		Expect(err).NotTo(HaveOccurred())
		var seen map[string]workload.Look
		Expect(json.Unmarshal(out, &seen)).To(Succeed())
		for _, path := range hidden {
			Expect(seen[path].Entries).To(BeEmpty(), "%s is visible in a pod", path)
			Expect(seen[path].Exists).To(BeFalse(), "%s is visible in a pod", path)
		}
		Expect(seen[own].Exists).To(BeTrue(), "control: what the pod may see it sees")
	}, SpecTimeout(world.Budget.Spec))
})
