// SPDX-License-Identifier: Apache-2.0

package security

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload/forge"
)

// connect sends one CONNECT made by hand.
func connect(ctx SpecContext, l *world.World, from lab.PodInfo, to netip.Addr, authority string, more ...forge.Field) forge.Answer {
	GinkgoHelper()
	a, err := l.Connect(ctx, from, to, authority, more...)
	Expect(err).NotTo(HaveOccurred())
	return a
}

var _ = Describe("a CONNECT made by hand", func() {
	It("goes to the pod that it was sent to or nowhere, however its authority is written", Label("SE-03"), func(ctx SpecContext) {
		thief := attacker(ctx, w, "thief-authority")
		stock, cart := w.Pod("shop/stock"), w.Pod("shop/cart-1")
		v4, v6 := stock.Addr(false), stock.Addr(true)
		Expect(w.Settle(ctx)).To(Succeed())
		before, err := w.Scrape(ctx, stock.Node)
		Expect(err).NotTo(HaveOccurred())
		answered := 0
		for _, c := range []struct {
			to        netip.Addr
			authority string
			want      int
		}{
			{v4, fmt.Sprintf("%s:8080", v4), http.StatusOK}, // control
			{v6, fmt.Sprintf("[%s]:8080", v6), http.StatusOK},
			{v4, fmt.Sprintf("[::ffff:%s]:8080", v4), http.StatusOK}, // another way to write the same address
			{v4, "stock.shop.svc.cluster.local:80", http.StatusOK},   // a service that has the pod as an endpoint

			{v4, fmt.Sprintf("%s:8080", cart.Addr(false)), http.StatusBadRequest}, // another pod, even of the same node
			{cart.Addr(false), fmt.Sprintf("%s:8080", v4), http.StatusBadRequest},
			{v4, fmt.Sprintf("[%s]:8080", v6), http.StatusBadRequest}, // its own, but not the one connected to
			{v4, "127.0.0.1:8090", http.StatusBadRequest},
			{v6, "[::1]:8090", http.StatusBadRequest},
			{v4, "0.0.0.0:8080", http.StatusBadRequest},
			{v4, fmt.Sprintf("[::ffff:%s]:8080", cart.Addr(false)), http.StatusBadRequest},
			{v6, fmt.Sprintf("[%s%%eth0]:8080", v6), http.StatusBadRequest}, // a zone
			{v6, fmt.Sprintf("[%s%%25eth0]:8080", v6), http.StatusBadRequest},
			{v4, fmt.Sprintf("root@%s:8080", v4), http.StatusBadRequest}, // user information
			{v4, fmt.Sprintf("%s:8080@%s:8080", cart.Addr(false), v4), http.StatusBadRequest},
			{v4, fmt.Sprintf("%s:0", v4), http.StatusBadRequest},
			{v4, v4.String(), http.StatusBadRequest},
			{v4, fmt.Sprintf("%s:", v4), http.StatusBadRequest},
			{v4, fmt.Sprintf("%s:73616", v4), http.StatusBadRequest}, // 8080 modulo 65536
			{v4, fmt.Sprintf("%s:-8080", v4), http.StatusBadRequest},
			{v4, fmt.Sprintf("%s:http", v4), http.StatusBadRequest},
			{v4, strings.Replace(fmt.Sprintf("%s:8080", v4), ".", "%2e", 1), http.StatusBadRequest},
			{v4, fmt.Sprintf("http://%s:8080", v4), http.StatusBadRequest},
			{v4, fmt.Sprintf("%s:8080/admin", v4), http.StatusBadRequest},
			{v4, "010.0.0.1:8080", http.StatusBadRequest},

			{v4, "STOCK.SHOP.SVC.CLUSTER.LOCAL:80", http.StatusServiceUnavailable}, // no such service, letter by letter
			{v4, "cart.shop.svc.cluster.local:80", http.StatusServiceUnavailable},  // one that the pod does not serve
			{v4, "stock.shop.svc.cluster.local:8099", http.StatusServiceUnavailable},
			{v4, "localhost:8090", http.StatusServiceUnavailable},
			{v4, fmt.Sprintf("%s:15001", v4), http.StatusServiceUnavailable}, // the proxy's own ports
			{v4, fmt.Sprintf("%s:15006", v4), http.StatusServiceUnavailable},
			{v4, fmt.Sprintf("%s:15008", v4), http.StatusServiceUnavailable},
			{v4, fmt.Sprintf("%s:8090", v4), http.StatusServiceUnavailable}, // bound to the pod's loopback
		} {
			a := connect(ctx, w, thief, c.to, c.authority)
			Expect(a.Status).To(Equal(c.want), "authority %q", c.authority)
			if c.want == http.StatusOK {
				answered++
				Expect(string(a.Payload)).To(ContainSubstring(`"workload":"stock"`), "authority %q", c.authority)
			}
		}
		Eventually(func(g Gomega, ctx SpecContext) {
			after, err := w.Scrape(ctx, stock.Node)
			g.Expect(err).NotTo(HaveOccurred())
			by := map[string]string{"reporter": "destination"}
			g.Expect(after.Since(before, world.Closed).Sum(world.Closed, by)).To(BeEquivalentTo(answered), "only what was answered was ever opened")
		}).WithContext(ctx).WithTimeout(world.Budget.Evidence).Should(Succeed())
	}, SpecTimeout(world.Budget.Spec))
})
