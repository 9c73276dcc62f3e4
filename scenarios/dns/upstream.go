// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"io"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// attempt is how long ztunnel waits for an answer here; 2 s otherwise.
const attempt = time.Second

var _ = Describe("DNS servers that fail", func() {
	It("says at once that a server is down, and after a while that it is silent; others and the mesh's names do not wait", world.OwnLab, Label("DN-05"), func(ctx SpecContext) {
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: {"DNS_UPSTREAM_TIMEOUT=" + attempt.String()}}})
		Expect(err).NotTo(HaveOccurred())
		down := l.Pod("plain/ledger").Addr(false).String()
		r := resolve(ctx, l, inside, "who.lab.test", options{Type: "TXT", Server: down, EDNS: 1232})
		Expect(r.Rcode).To(Equal("SERVFAIL"), "%+v", r)
		Expect(r.Reason).To(ContainSubstring("connection refused"), "who asks with EDNS is told why")
		Expect(time.Duration(r.ElapsedNanos)).To(BeNumerically("<", attempt), "nobody waited for an answer")
		Expect(resolve(ctx, l, outside, "who.lab.test", options{Type: "TXT", Server: down}).Class).To(Equal(workload.ClassRefused), "control: nobody listens there")

		serve(ctx, l, outside)
		server := l.Pod(outside).Addr(false).String()
		silent := make(chan workload.Resolution, 1)
		go func() {
			defer GinkgoRecover()
			silent <- resolve(ctx, l, inside, "mute.lab.test", options{Server: server})
		}()
		r = resolve(ctx, l, inside, "100.slow.lab.test", options{Server: server})
		Expect(r.Data("A")).To(HaveLen(1), "a slow answer is an answer: %+v", r)
		Expect(resolve(ctx, l, inside, "cart", options{Server: server}).Data("A")).To(HaveLen(1), "the mesh's names, whoever was asked")
		r = <-silent
		Expect(r.Rcode).To(Equal("SERVFAIL"), "%+v", r)
		Expect(time.Duration(r.ElapsedNanos)).To(And(BeNumerically(">=", 2*attempt), BeNumerically("<", 4*attempt)), "two attempts")
	}, SpecTimeout(world.Budget.Spec))

	// istio/istio#58611 has a resolver on the node in the circle.
	It("recognises a query that comes back to it", Label("DN-05"), func(ctx SpecContext) {
		here, there := w.Pod(inside).Addr(false).String(), w.Pod(outside).Addr(false).String()
		serve(ctx, w, inside, "--forward", there+":53")
		serve(ctx, w, outside, "--forward", here+":53")
		began := time.Now()
		r := resolve(ctx, w, inside, "round.test", options{Server: there})
		Expect(r.Rcode).To(Equal("SERVFAIL"), "%+v", r)
		Expect(time.Duration(r.ElapsedNanos)).To(BeNumerically("<", 2*time.Second), "before anybody's time is up")
		Expect(resolve(ctx, w, inside, "who.lab.test", options{Type: "TXT", Server: there}).Data("TXT")).To(HaveLen(1), "control: what does not go round is answered")
		logged := func() string {
			log, err := w.Daemon(w.Pod(inside).Node, lab.DaemonZtunnel).Logs(ctx, began)
			Expect(err).NotTo(HaveOccurred())
			defer func() { _ = log.Close() }()
			text, err := io.ReadAll(log)
			Expect(err).NotTo(HaveOccurred())
			return string(text)
		}
		Eventually(logged, world.Budget.Evidence, world.Budget.Poll).Should(ContainSubstring("round in a circle"))
		Expect(strings.Count(logged(), "round in a circle")).To(Equal(1), "said once, not once per round")
	}, SpecTimeout(world.Budget.Spec))
})
