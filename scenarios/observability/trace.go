// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"fmt"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/workload"
	"github.com/ambientlab/ambientlab/topologies/workload/forge"
)

var _ = Describe("a trace", func() {
	It("is one over both hops of a connection, and another for each connection", Label("OB-06"), func(ctx SpecContext) {
		seen := map[string]bool{}
		for range 3 {
			obs := observe(ctx, "http://stock.shop:80", workload.Options{})
			Expect(obs).To(expect.Tunnelled())
			id := obs.Outbound.Record.TraceID
			Expect(id).To(MatchRegexp("^[0-9a-f]{32}$"))
			Expect(obs.Inbound.Record.TraceID).To(Equal(id))
			Expect(obs.Inbound.Record.Start).NotTo(BeTemporally("<", obs.Outbound.Record.Start))
			seen[id] = true
		}
		Expect(seen).To(HaveLen(3), "control: what is equal by chance would be equal here too")
		plain := observe(ctx, "http://ledger.plain:80", workload.Options{})
		Expect(plain).To(expect.PlainOutbound())
		Expect(plain.Outbound.Record.TraceID).To(BeEmpty(), "control: without a tunnel nothing carries it")
	}, SpecTimeout(world.Budget.Spec))

	It("is taken over from a peer that sends one, and begun anew for one that sends none or nonsense", Label("OB-06"), func(ctx SpecContext) {
		peer, err := w.Attacker(ctx, "shop/web", "tracer")
		Expect(err).NotTo(HaveOccurred())
		stock := w.Pod("shop/stock")
		const id, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
		for header, taken := range map[string]bool{
			"00-" + id + "-" + span + "-01":                            true,
			"00-" + id + "-" + span + "-00":                            true, // not sampled is a trace too
			"cc-" + id + "-" + span + "-01-what-the-future-will-bring": true,
			"":                              false,
			"ff-" + id + "-" + span + "-01": false, // no version
			"00-00000000000000000000000000000000-" + span + "-01": false,
			"00-" + id + "-0000000000000000-01":                   false,
			"00-" + id + "-" + span:                               false,
			"00-" + id[:30] + "zz-" + span + "-01":                false,
		} {
			var fields []forge.Field
			if header != "" {
				fields = []forge.Field{{Name: telemetry.HeaderTraceparent, Value: header}}
			}
			began := time.Now()
			a, err := w.Connect(ctx, peer, stock.Addr(false), fmt.Sprintf("%s:8080", stock.Addr(false)), fields...)
			Expect(err).NotTo(HaveOccurred())
			Expect(a.Status).To(Equal(http.StatusOK))
			e, err := w.WaitEntry(ctx, stock.Node, began, func(e telemetry.Entry) bool {
				return e.Record.Direction == telemetry.Inbound && e.Record.Src.Name == peer.Name && !e.Record.Start.Before(began)
			})
			Expect(err).NotTo(HaveOccurred())
			Expect(e.Record.TraceID).To(MatchRegexp("^[0-9a-f]{32}$"), "traceparent %q", header)
			Expect(e.Record.TraceID == id).To(Equal(taken), "traceparent %q gave %s", header, e.Record.TraceID)
		}
	}, SpecTimeout(world.Budget.Spec))
})
