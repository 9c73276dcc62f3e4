// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"net/netip"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// connectWithin shortens ztunnel's wait for a peer that does not answer: 10 s otherwise.
const connectWithin = time.Second

// The control plane, which is the certificate authority too, runs on node1: a cut between the nodes parts node2's ztunnel from
// both, and from the pods of the other node.
var _ = Describe("a partition between nodes", func() {
	It("stops what must cross it, with a reason, and nothing else; all is back when it ends", world.OwnLab, Label("FI-02"), func(ctx SpecContext) {
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: {
			"CONNECT_TIMEOUT=" + connectWithin.String(), "XDS_BACKOFF_MAX=500ms", "CERT_BACKOFF_MIN=100ms", "CERT_BACKOFF_MAX=500ms",
			"LOCAL_WORKLOAD_TIMEOUT=30s", "HBONE_PING_INTERVAL=500ms", "HBONE_PING_TIMEOUT=2s",
		}}})
		Expect(err).NotTo(HaveOccurred())
		l.Needs(lab.CapLink)
		web, cart, ledger := l.Pod("shop/web"), l.Pod("shop/cart"), l.Pod("plain/ledger")
		far, near := address(cart), address(ledger)
		Expect(observe(ctx, l, web, far)).To(expect.Tunnelled(), "control: before it, the nodes reach each other")
		link := l.Link(web.Node, cart.Node)
		Expect(link.Cut(ctx)).To(Succeed())

		By("refusing calls across it, once the pooled connection is given up, and saying why")
		refused := func(e telemetry.Entry) bool {
			return e.Record.Direction == telemetry.Outbound && e.Record.Src.Name == "web" && e.Record.Flags == telemetry.FlagNetworkPolicy
		}
		began := time.Now()
		Eventually(func(ctx SpecContext) (bool, error) {
			res, err := l.Call(ctx, web.PodRef, far, workload.Options{Timeout: 2 * connectWithin})
			Expect(res.OK).To(BeZero(), "a call crosses the cut")
			if err != nil {
				return false, err
			}
			entries, err := l.Entries(ctx, web.Node, began)
			for _, e := range entries {
				if refused(e) {
					Expect(e.Error).To(ContainSubstring("15008"), "where to look")
					return true, nil
				}
			}
			return false, err
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue())

		By("going on, on the node that its control plane cannot reach")
		Expect(observe(ctx, l, ledger, far)).To(expect.PlainInbound())
		Expect(observe(ctx, l, cart, near)).To(expect.PlainOutbound())
		late := l.ClonePod("shop/cart", "late")
		late.Spec.ServiceAccountName = "late" // a certificate that nobody has yet
		Expect(l.Apply(ctx, world.Account("shop", "late"), late)).To(Succeed())
		pod, err := l.WaitPod(ctx, lab.PodRef{Namespace: "shop", Name: "late"}, func(p lab.PodInfo) bool { return p.Ready && p.Enrolled })
		Expect(err).NotTo(HaveOccurred())
		held, err := l.Call(ctx, pod.PodRef, near, workload.Options{Timeout: 300 * time.Millisecond})
		Expect(err).NotTo(HaveOccurred())
		Expect(held.OK).To(BeZero(), "a pod that its ztunnel knows nothing of goes nowhere")

		By("recovering")
		Expect(link.Restore(ctx)).To(Succeed())
		restored := time.Now()
		Eventually(func(ctx SpecContext) bool { return observe(ctx, l, web, far).Call.OK }).
			WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue())
		pods := time.Since(restored)
		Expect(l.Known(ctx, pod)).To(Succeed())
		Eventually(func(ctx SpecContext) bool { return observe(ctx, l, pod, address(web)).Call.OK }).
			WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue())
		AddReportEntry("recovery", fmt.Sprintf("between pods after %s, of configuration and certificates after %s",
			pods.Round(time.Millisecond), time.Since(restored).Round(time.Millisecond)))
		Expect(observe(ctx, l, web, far)).To(expect.Tunnelled())
		Expect(observe(ctx, l, pod, address(web))).To(expect.Tunnelled())
	}, SpecTimeout(world.Budget.LongSpec))
})

func address(p lab.PodInfo) string {
	return fmt.Sprintf("http://%s", netip.AddrPortFrom(p.Addr(false), 8080))
}

func observe(ctx SpecContext, l *world.World, from lab.PodInfo, url string) *world.Observation {
	GinkgoHelper()
	obs, err := l.Observe(ctx, from, url, workload.Options{Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred(), "%v", obs)
	return obs
}
