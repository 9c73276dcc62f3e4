// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// nobody is a port that no server of the lab listens on.
const nobody = 9999

// connectTimeout is what the scenario's ztunnels are told, and slack what else a refusal may take: less than any timer's default.
const (
	connectTimeout = time.Second
	slack          = 4 * time.Second
)

var _ = Describe("connections that end badly", func() {
	for _, o := range over {
		url := func(port uint16) string { return fmt.Sprintf("tcp://%s", at(w.Pod(o.to), false, port)) }

		// Upstream's ztunnel turns a reset into an orderly end (istio/ztunnel#1483, open): the application takes half an answer for a whole one.
		It("hands a reset on, in both directions, "+o.name, Label("TR-07"), func(ctx SpecContext) {
			client := observe(ctx, o.from, url(9000), workload.Options{PeerReset: true, Download: kilobyte})
			Expect(client.Call.Class).To(Equal(workload.ClassReset), "the server reset the connection:\n%s", client)

			call := func(opts workload.Options) workload.Call {
				GinkgoHelper()
				res, err := w.Call(ctx, w.Pod(o.from).PodRef, url(9000), opts)
				Expect(err).NotTo(HaveOccurred())
				return res.First()
			}
			server := call(workload.Options{Reset: true, Size: kilobyte})
			Expect(server.OK).To(BeTrue(), server.Error)
			Expect(server.Seen.Ended).To(Equal(workload.ClassReset), "the client reset the connection")

			orderly := call(workload.Options{HalfClose: true, Size: kilobyte, Download: kilobyte})
			Expect(orderly.OK).To(BeTrue(), "control: an orderly end arrives as one: %s", orderly.Error)
			Expect(w.Settle(ctx)).To(Succeed())
		}, SpecTimeout(world.Budget.Spec))

		It("answers for a port that nobody listens on, "+o.name, Label("TR-07"), func(ctx SpecContext) {
			obs := observe(ctx, o.from, url(nobody), workload.Options{})
			Expect(obs.Call.Class).To(BeElementOf(workload.ClassRefused, workload.ClassReset), "not an orderly end:\n%s", obs)
			Expect(obs.Call.Latency).To(BeNumerically("<", slack), obs.String())
			for _, e := range []*telemetry.Entry{obs.Outbound, obs.Inbound} {
				if e != nil {
					Expect(e.Record.Flags).To(Equal(telemetry.FlagConnect), obs.String())
					Expect(e.Level).To(Equal("error"), obs.String())
				}
			}
			if last := lastProxy(obs); last != nil {
				Expect(last.Error).To(ContainSubstring("refused"), obs.String())
			} else {
				Expect(obs.Call.Class).To(Equal(workload.ClassRefused), "control: without a proxy the kernel itself refuses")
			}
		}, SpecTimeout(world.Budget.Spec))
	}

	It("gives up on what does not answer, and says what may be in the way", world.OwnLab, Label("TR-07"), func(ctx SpecContext) {
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{
			lab.DaemonZtunnel: {"CONNECT_TIMEOUT=" + connectTimeout.String()},
		}})
		Expect(err).NotTo(HaveOccurred())
		l.Needs(lab.CapLink)
		call := func(to string) (*world.Observation, time.Duration) {
			GinkgoHelper()
			obs, err := l.Observe(ctx, l.Pod("shop/web"), fmt.Sprintf("http://%s", at(l.Pod(to), false, 8080)), workload.Options{})
			Expect(err).NotTo(HaveOccurred(), "%v", obs)
			return obs, obs.Call.Latency
		}
		link := l.Link("node1", "node2")
		Expect(link.Cut(ctx)).To(Succeed())
		for to, flag := range map[string]string{"shop/cart": telemetry.FlagNetworkPolicy, "plain/ledger": telemetry.FlagConnect} {
			obs, took := call(to)
			Expect(obs.Call.OK).To(BeFalse(), obs.String())
			Expect(took).To(And(BeNumerically(">=", connectTimeout), BeNumerically("<", connectTimeout+slack)), obs.String())
			Expect(obs.Outbound).NotTo(BeNil())
			Expect(obs.Outbound.Record.Flags).To(Equal(flag), obs.String())
			if flag == telemetry.FlagNetworkPolicy { // istio/ztunnel#1229: the most frequent cause
				Expect(obs.Outbound.Error).To(ContainSubstring("15008"), obs.String())
			}
		}
		Expect(link.Restore(ctx)).To(Succeed())
		for _, to := range []string{"shop/cart", "plain/ledger"} {
			Eventually(func() bool { obs, _ := call(to); return obs.Call.OK }).WithTimeout(world.Budget.Propagation).
				Should(BeTrue(), "control: with the link restored, %s answers", to)
		}
	}, SpecTimeout(world.Budget.Spec))
})

// lastProxy is the one that talks to the server.
func lastProxy(o *world.Observation) *telemetry.Entry {
	if o.Inbound != nil {
		return o.Inbound
	}
	return o.Outbound
}
