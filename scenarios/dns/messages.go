// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var _ = Describe("DNS messages", func() {
	// istio/istio#55979: SRV of a headless service without its search domain. Ports have no names in the mesh's own data, so
	// that question is the cluster's, asked as it stands: with the search domain it is answered, without it is not.
	It("passes on what it does not answer itself, and brings the answer back", Label("DN-02"), func(ctx SpecContext) {
		const srv = "_http._tcp.cart-headless.shop.svc.cluster.local"
		r, passedOn := told(ctx, srv, options{Type: "SRV"})
		Expect(passedOn).To(BeTrue())
		Expect(r.Data("SRV")).To(HaveLen(6), "each pod has a name for each of its addresses: %+v", r)
		Expect(sorted(r, "SRV")).To(Equal(sorted(untouched(ctx, srv, options{Type: "SRV"}), "SRV")), "control: as the cluster's DNS says")
		Expect(resolve(ctx, w, inside, "_http._tcp.cart-headless", options{Type: "SRV", Search: true}).Data("SRV")).To(HaveLen(6))
		Expect(resolve(ctx, w, inside, "_http._tcp.cart-headless", options{Type: "SRV"}).Rcode).To(Equal("NXDOMAIN"))
		Expect(resolve(ctx, w, outside, "_http._tcp.cart-headless", options{Type: "SRV"}).Rcode).To(Equal("NXDOMAIN"), "control")
	}, SpecTimeout(world.Budget.Spec))

	// istio/istio#55962: an UPDATE was answered NOTIMP.
	It("sends every kind of message where its client did, from the client's own address", Label("DN-02"), func(ctx SpecContext) {
		serve(ctx, w, outside)
		for _, v6 := range []bool{false, true} {
			server := w.Pod(outside).Addr(v6).String()
			for _, from := range []string{inside, "plain/ledger"} {
				client := w.Pod(from).Addr(v6).String()
				for _, o := range []options{{}, {TCP: true}, {EDNS: 1400}} {
					o.Type, o.Server = "TXT", server
					protocol := "udp"
					if o.TCP {
						protocol = "tcp"
					}
					r := resolve(ctx, w, from, "who.lab.test", o)
					Expect(r.Data("TXT")).To(ConsistOf(fmt.Sprintf("%q", fmt.Sprintf("%s %s %d", client, protocol, o.EDNS))), "%s, %+v: %+v", from, o, r)
				}
				for _, operation := range []string{"UPDATE", "NOTIFY"} {
					Expect(resolve(ctx, w, from, "lab.test", options{Type: operation, Server: server}).Rcode).To(Equal("NOERROR"), operation)
				}
			}
		}
		_, passedOn := told(ctx, "lab.test", options{Type: "UPDATE", Server: w.Pod(outside).Addr(false).String()})
		Expect(passedOn).To(BeTrue(), "control: it went through the mesh's proxy")
	}, SpecTimeout(world.Budget.Spec))

	It("keeps to the size that the client takes, and gives the whole by TCP", Label("DN-02"), func(ctx SpecContext) {
		serve(ctx, w, outside)
		server := w.Pod(outside).Addr(false).String()
		whole := func(r workload.Resolution) bool { return !r.Truncated && len(r.Data("A")) == 100 }
		for _, from := range []string{inside, "plain/ledger"} { // the second is outside the mesh: the control
			for _, c := range []struct {
				options
				whole bool
				most  int
			}{{options{}, false, 512}, {options{EDNS: 1232}, false, 1232}, {options{EDNS: 4096}, true, 4096}, {options{TCP: true}, true, 65535}} {
				c.Server = server
				r := resolve(ctx, w, from, "100.many.lab.test", c.options)
				Expect(whole(r)).To(Equal(c.whole), "%s, %+v: truncated %v, %d addresses", from, c.options, r.Truncated, len(r.Data("A")))
				Expect(r.Truncated).To(Equal(!c.whole))
				Expect(r.Bytes).To(BeNumerically("<=", c.most))
			}
		}
		// The mesh's own answers keep to it too.
		r, passedOn := told(ctx, "cart-headless", options{EDNS: 1232})
		Expect(passedOn).To(BeFalse())
		Expect(r.EDNS).To(BeNumerically(">", 0), "EDNS is answered with EDNS")
		Expect(r.Data("A")).To(HaveLen(3))
		Expect(resolve(ctx, w, inside, "cart-headless", options{}).EDNS).To(BeZero(), "and not without")
	}, SpecTimeout(world.Budget.Spec))
})
