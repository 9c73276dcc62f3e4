// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"net/netip"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// Pooled connections to a pod that is gone have answered for the next one at its address with 503 (istio/ztunnel#1637,
// istio/istio#58389, #53108): upstream's way out is a short idle time. Here a pool's key holds the identities that the
// destination may have, so that a connection of another time serves nobody.
var _ = Describe("an address that another identity takes over", func() {
	It("leads to the new pod at once, over a connection of its own", world.OwnLab, Label("LC-09"), func(ctx SpecContext) {
		world.Shared().Needs(lab.CapPodIPs)
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		cart := l.Pod("shop/cart")
		url := at(cart, "http", 8080)
		before := observed(ctx, l, "shop/web", url)
		Expect(before.Outbound.Record.Dst.Identity).To(Equal(expect.Identity(cart)), "control: the old pod's")
		Expect(pooled(ctx, l, cart)).NotTo(BeEmpty(), "control: a connection to it is pooled")

		old := l.PodObject("shop/cart")
		Expect(l.Delete(ctx, old)).To(Succeed())
		next := l.ClonePod("shop/cart", "stranger")
		next.Spec.ServiceAccountName = "stranger"
		next.Labels["app"] = "stranger"
		next.Annotations = map[string]string{lab.AnnotationIPs: joined(cart.IPs)}
		Expect(l.Apply(ctx, world.Account("shop", "stranger"), next)).To(Succeed())
		stranger, err := l.WaitPod(ctx, lab.PodRef{Namespace: "shop", Name: "stranger"}, func(p lab.PodInfo) bool { return p.Ready && p.Enrolled })
		Expect(err).NotTo(HaveOccurred())
		Expect(stranger.Addr(false)).To(Equal(cart.Addr(false)))

		By("calling the address until its new owner is known, and from then on without a failure")
		known := false
		Eventually(func(ctx SpecContext) bool {
			obs := observe(ctx, l, "shop/web", url)
			if obs.Call.OK {
				known = true
				Expect(obs).To(expect.Tunnelled())
				Expect(obs.Call.Seen.Workload).To(Equal("stranger"))
				Expect(obs.Outbound.Record.Dst.Identity).To(Equal(expect.Identity(stranger)), "never the old one's")
			}
			return known
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue())
		res, err := l.Call(ctx, l.Pod("shop/web").PodRef, url, workload.Options{Count: 100, Concurrency: 4, Timeout: world.Budget.Call})
		Expect(err).NotTo(HaveOccurred())
		Expect(res.Failed).To(BeZero(), "%v", res.Errors)
		Expect(pooled(ctx, l, stranger)).To(ContainElement(expect.Identity(stranger).String()), "a connection of its own")

		By("handing the address to a pod of the same identity: the pooled connection's peer is gone, and nobody notices")
		Expect(l.Delete(ctx, next)).To(Succeed())
		again := next.DeepCopy()
		again.Name, again.UID, again.ResourceVersion = "stranger-2", "", ""
		_, err = l.Join(ctx, again)
		Expect(err).NotTo(HaveOccurred())
		res, err = l.Call(ctx, l.Pod("shop/web").PodRef, url, workload.Options{Count: 50, Timeout: world.Budget.Call})
		Expect(err).NotTo(HaveOccurred())
		Expect(res.Failed).To(BeZero(), "%v", res.Errors)
		Expect(res.First().Seen.Workload).To(Equal("stranger-2"))
	}, SpecTimeout(world.Budget.Spec))
})

// pooled are the identities that the client's pooled connections to a pod's address were made for.
func pooled(ctx SpecContext, l *world.World, to lab.PodInfo) []string {
	GinkgoHelper()
	d, err := l.ConfigDump(ctx, l.Pod("shop/web").Node)
	Expect(err).NotTo(HaveOccurred())
	var found []string
	for _, c := range d.Pools[l.Pod("shop/web").UID] {
		if addr, err := netip.ParseAddrPort(c.Addr); err == nil && addr.Addr() == to.Addr(false) {
			found = append(found, c.Destinations)
		}
	}
	return found
}

func joined(ips []netip.Addr) string {
	var list []string
	for _, ip := range ips {
		list = append(list, ip.String())
	}
	return strings.Join(list, ",")
}
