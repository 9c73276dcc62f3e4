// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// Upstream's proxies learn of a pod only after the control plane has seen its address, and its first connections may fail
// meanwhile (istio/istio#57674, open). Here they wait, for as long as LOCAL_WORKLOAD_TIMEOUT allows.
var _ = Describe("a control plane that is away", func() {
	It("is not missed by pods that are known; new ones wait, then proceed", world.OwnLab, Label("LC-06"), func(ctx SpecContext) {
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{
			lab.DaemonZtunnel: {"LOCAL_WORKLOAD_TIMEOUT=60s"},
		}})
		Expect(err).NotTo(HaveOccurred())
		l.Needs(lab.CapSignal)
		control, url := l.Daemon("", lab.DaemonControl), at(l.Pod("shop/cart"), "http", 8080)
		observed(ctx, l, "shop/web", url) // control: with it, calls work
		kept := l.Begin(ctx, "shop/web", at(l.Pod("shop/cart"), "tcp", 9000), workload.Options{KeepOpen: true, Ledger: true, Interval: 20 * time.Millisecond})
		Expect(control.Signal(ctx, syscall.SIGKILL)).To(Succeed())
		Expect(control.Stop(ctx)).To(Succeed()) // where somebody starts again what was killed

		By("going on without it")
		res, err := l.Call(ctx, l.Pod("shop/web").PodRef, url, workload.Options{Count: 50, Timeout: world.Budget.Call})
		Expect(err).NotTo(HaveOccurred())
		Expect(res.Failed).To(BeZero(), "%v", res.Errors)
		for _, c := range kept.Finish().Connections {
			Expect(c.Cut()).To(BeFalse(), "cut though only the control plane is away: %+v", c)
			Expect(c.Calls).To(BeNumerically(">", 0))
		}
		for _, node := range l.Nodes() { // the kept connections are still to be counted as closed
			Eventually(l.OpenTunnels).WithContext(ctx).WithArguments(node).WithTimeout(world.Budget.Evidence).Should(BeZero())
		}
		observed(ctx, l, "shop/web", url)
		Expect(observe(ctx, l, "plain/batch", url)).To(expect.PlainInbound())

		By("holding the connections of a pod that only the control plane could name")
		Expect(l.Apply(ctx, l.ClonePod("shop/web", "late"))).To(Succeed())
		late, err := l.WaitPod(ctx, lab.PodRef{Namespace: "shop", Name: "late"}, func(p lab.PodInfo) bool { return p.Ready && p.Enrolled })
		Expect(err).NotTo(HaveOccurred())
		near := l.Pod("plain/batch") // on the same node: no other ztunnel is needed for it
		if near.Node != late.Node {
			near = l.Pod("plain/ledger")
		}
		Expect(near.Node).To(Equal(late.Node))
		waiting := l.Begin(ctx, "shop/late", at(near, "http", 8080), workload.Options{Timeout: time.Minute})
		Consistently(waiting.Done()).WithTimeout(300 * time.Millisecond).ShouldNot(BeClosed())
		waiting.Stop()

		By("restarting a ztunnel that has no configuration: it is not ready, and lets nothing through")
		zt := l.Daemon(l.Pod("shop/cart").Node, lab.DaemonZtunnel)
		Expect(zt.Signal(ctx, syscall.SIGKILL)).To(Succeed())
		Expect(zt.Start(ctx)).To(Succeed())
		blind, err := l.Call(ctx, l.Pod("plain/batch").PodRef, url, workload.Options{Timeout: 300 * time.Millisecond})
		Expect(err).NotTo(HaveOccurred())
		Expect(blind.OK).To(BeZero(), "a ztunnel without policies let a connection in")

		By("coming back")
		Expect(control.Start(ctx)).To(Succeed())
		Expect(control.Ready(ctx)).To(Succeed())
		Expect(zt.Ready(ctx)).To(Succeed())
		<-waiting.Done()
		res = waiting.Finish()
		Expect(res.OK).To(BeNumerically(">", 0), "%v", res.Errors)
		Expect(res.First().Latency).To(BeNumerically(">", 300*time.Millisecond), "control: it did wait")
		Expect(l.Known(ctx, late)).To(Succeed())
		observed(ctx, l, "shop/late", url)
	}, SpecTimeout(world.Budget.LongSpec))
})
