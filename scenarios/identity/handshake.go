// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"net/netip"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/workload"
	"github.com/ambientlab/ambientlab/topologies/workload/peer"
)

// forged is a certificate that must be refused, and what the log says of it; "" if it must be accepted.
type forged struct {
	name string
	m    peer.Material
	says string
}

var _ = Describe("a peer's certificate", func() {
	It("lets a client in only if it is of this mesh and valid now", Label("ID-03", "FI-08"), func(ctx SpecContext) {
		ca := meshAuthority(ctx, w)
		from, to := w.Pod("plain/batch"), w.Pod("shop/stock")
		id := expect.Identity(from).String()
		for _, f := range []forged{
			{"control: its own", ca.workload(id, -time.Hour, time.Hour), ""},
			{"no certificate", peer.Material{}, "certificate"},
			{"another trust domain", ca.workload("spiffe://elsewhere/ns/plain/sa/batch", -time.Hour, time.Hour), "another trust domain"},
			{"no identity of this form", ca.workload("spiffe://cluster.local/batch", -time.Hour, time.Hour), "not who was expected"},
			{"an unknown authority", strangerAuthority(ca).workload(id, -time.Hour, time.Hour), "trusted root"},
			{"of a clock that is ahead", ca.workload(id, time.Minute, time.Hour), "not yet valid"},
			{"just expired", ca.workload(id, -time.Hour, -time.Second), "expired"},
			{"control: still good for a moment", ca.workload(id, -time.Second, 30*time.Second), ""},
		} {
			By(f.name)
			before, err := w.Scrape(ctx, to.Node)
			Expect(err).NotTo(HaveOccurred())
			began := time.Now()
			got := ask(ctx, w, from, to, f.m)
			if f.says == "" {
				Expect(got.Status).To(Equal(200), "%+v", got)
				Expect(got.Server).To(Equal(expect.Identity(to).String()))
				continue
			}
			Expect(got.Status).To(BeZero(), "%s: %+v", f.name, got)
			e := refusedBy(ctx, w, to.Node, from, began)
			Expect(e.Record.Flags).To(Equal(telemetry.FlagTLS), "%s: %s", f.name, e.Error)
			Expect(e.Error).To(ContainSubstring(f.says))
			Expect(e.Record.Src.Identity.IsZero()).To(BeTrue(), "nobody proved to be anybody")
			after, err := w.Scrape(ctx, to.Node)
			Expect(err).NotTo(HaveOccurred())
			failed := after.Since(before, world.Failed).Sum(world.Failed, map[string]string{"reporter": "destination", "response_flags": telemetry.FlagTLS})
			Expect(failed).To(BeNumerically(">=", 1.0), "%s: connections that failed, as counted; the client may have tried again", f.name)
		}
	}, SpecTimeout(world.Budget.Spec))

	It("lets no client's bytes out to a server that is not who it should be, or not valid now", Label("ID-03", "FI-08"), func(ctx SpecContext) {
		ca := meshAuthority(ctx, w)
		clone := w.ClonePod("plain/ledger", "impostor")
		clone.Labels = map[string]string{"app": "impostor", mesh.LabelTunnel: "http", mesh.LabelDataplaneMode: mesh.ModeNone}
		DeferCleanup(func(ctx SpecContext) { Expect(w.Delete(ctx, clone)).To(Succeed()) })
		impostor, err := w.Join(ctx, clone)
		Expect(err).NotTo(HaveOccurred())
		from := w.Pod("shop/web")
		id := expect.Identity(impostor).String()
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(impostor.Addr(false), 8080))
		for _, f := range []forged{
			{"control: its own", ca.workload(id, -time.Hour, time.Hour), ""},
			{"another's", ca.workload(expect.Identity(w.Pod("shop/stock")).String(), -time.Hour, time.Hour), "not who was expected"},
			{"another trust domain's", ca.workload("spiffe://elsewhere/ns/plain/sa/"+impostor.ServiceAccount, -time.Hour, time.Hour), "not who was expected"},
			{"an unknown authority's", strangerAuthority(ca).workload(id, -time.Hour, time.Hour), "trusted root"},
			{"of a clock that is ahead", ca.workload(id, time.Minute, time.Hour), "not yet valid"},
			{"just expired", ca.workload(id, -time.Hour, -time.Second), "expired"},
		} {
			By(f.name)
			server := impersonate(ctx, w, impostor, f.m)
			obs, err := w.Observe(ctx, from, url, workload.Options{Timeout: world.Budget.Call})
			Expect(err).NotTo(HaveOccurred(), "%v", obs)
			Expect(obs.Outbound).NotTo(BeNil(), "%s: %v", f.name, obs)
			if f.says == "" {
				Expect(obs.Call.OK).To(BeTrue(), obs.String())
				Expect(obs.Outbound.Record.Dst.Identity).To(Equal(expect.Identity(impostor)))
			} else {
				Expect(obs.Call.OK).To(BeFalse(), "%s: %v", f.name, obs)
				Expect(obs.Outbound.Record.Flags).To(Equal(telemetry.FlagTLS), "%s: %v", f.name, obs)
				Expect(obs.Outbound.Error).To(ContainSubstring(f.says))
				Expect(obs.Outbound.Record.Dst.Identity.IsZero()).To(BeTrue())
				Expect(obs.Metrics.Sum(world.Opened, nil)).To(BeZero())
			}
			server.end()
		}
	}, SpecTimeout(world.Budget.Spec))
})
