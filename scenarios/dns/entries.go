// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"net/netip"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

func observe(ctx context.Context, from, url string) *world.Observation {
	GinkgoHelper()
	o, err := w.Observe(ctx, w.Pod(from), url, workload.Options{Family: 4, Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred(), "%v", o)
	return o
}

var automatic = netip.MustParsePrefix("240.240.0.0/16")

var _ = Describe("ServiceEntries", func() {
	It("gives a host without an address one of its own, which leads to the pods behind it", Label("DN-03"), func(ctx SpecContext) {
		apply(ctx, entryOf("auto", "shop", []string{"auto.test"}, nil))
		r := eventually(ctx, w, "auto.test", options{}, known)
		Expect(automatic.Contains(netip.MustParseAddr(r.Data("A")[0]))).To(BeTrue(), "%v", r)
		Expect(resolve(ctx, w, inside, "auto.test", options{Type: "AAAA"}).Data("AAAA")).To(HaveLen(1))
		Expect(untouched(ctx, "auto.test", options{}).Rcode).To(Equal("NXDOMAIN"), "control: outside the mesh there is no such name")

		o := observe(ctx, inside, "http://auto.test")
		Expect(o).To(expect.Tunnelled())
		Expect(o.To.Name).To(Equal("stock"))
		Expect(o.Outbound.Record.Service).To(Equal("auto.test"))
		again := resolve(ctx, w, guest, "auto.test", options{})
		Expect(again.Data("A")).To(Equal(r.Data("A")), "the same for everybody")
	}, SpecTimeout(world.Budget.Spec))

	It("resolves a host outside by ztunnel's own resolver, since the pod is told an address that leads nowhere", Label("DN-03"), func(ctx SpecContext) {
		apply(ctx, entryOf("outside", "shop", []string{"unknown.external"}, nil, func(e *networking.ServiceEntry) {
			e.WorkloadSelector, e.Resolution = nil, networking.ServiceEntry_DNS
			e.Ports[0].TargetPort = 0
		}))
		real := untouched(ctx, "unknown.external", options{}).Data("A")
		eventually(ctx, w, "unknown.external", options{}, func(r workload.Resolution) bool {
			return len(r.Data("A")) == 1 && r.Data("A")[0] != real[0]
		})
		o := observe(ctx, inside, "http://unknown.external")
		Expect(o.Call.OK).To(BeTrue(), "%v", o)
		Expect(automatic.Contains(o.Call.RemoteAddr.Addr())).To(BeTrue(), "the client called the automatic address")
		Expect(o.Outbound.Record.Dst.Addr.Addr().String()).To(Equal(real[0]), "ztunnel called the real one")
		Expect(o.Outbound.Record.Service).To(Equal("unknown.external"))
		control := observe(ctx, outside, "http://unknown.external")
		Expect(control.Call.OK).To(BeTrue())
		Expect(control.Call.RemoteAddr.Addr().String()).To(Equal(real[0]), "control: outside the mesh the name means the host itself")
	}, SpecTimeout(world.Budget.Spec))

	// istio/istio#55163: exportTo was not heeded.
	It("answers each namespace with its own of several entries, and none with a private one of another", Label("DN-03"), func(ctx SpecContext) {
		private := func(e *networking.ServiceEntry) { e.ExportTo = []string{"."} }
		apply(ctx,
			entryOf("same", "shop", []string{"same.test"}, []string{"240.240.201.1"}),
			entryOf("same", "plain", []string{"same.test"}, []string{"240.240.201.2"}),
			entryOf("hidden", "shop", []string{"hidden.test"}, []string{"240.240.201.3"}, private))
		for from, want := range map[string]string{inside: "240.240.201.1", guest: "240.240.201.2"} {
			Expect(resolve(ctx, w, from, "same.test", options{}).Data("A")).To(ConsistOf(want), from)
		}
		Expect(resolve(ctx, w, inside, "hidden.test", options{}).Data("A")).To(ConsistOf("240.240.201.3"), "control: in its own namespace it is there")
		Expect(resolve(ctx, w, guest, "hidden.test", options{}).Rcode).To(Equal("NXDOMAIN"))
	}, SpecTimeout(world.Budget.Spec))
})
