// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// holding is what a daemon must give back.
type holding struct{ Descriptors, Goroutines float64 }

// held is what a daemon holds now.
func held(ctx SpecContext, l *world.World, node, daemon string) holding {
	GinkgoHelper()
	s, err := l.ScrapeDaemon(ctx, node, daemon)
	Expect(err).NotTo(HaveOccurred())
	h := holding{s.Sum("process_open_fds", nil), s.Sum("go_goroutines", nil)}
	Expect(h.Descriptors*h.Goroutines).To(BeNumerically(">", 0), "%s tells neither descriptors nor goroutines: %+v", daemon, h)
	return h
}

// slack is what a scrape itself, and connections that are pooled by intention, may cost.
const slack = 8

// expectHeld waits until a daemon holds no more than before.
func expectHeld(ctx SpecContext, l *world.World, node, daemon string, before holding) {
	GinkgoHelper()
	Eventually(held).WithContext(ctx).WithArguments(l, node, daemon).WithTimeout(world.Budget.Evidence).Should(And(
		HaveField("Descriptors", BeNumerically("<=", before.Descriptors+slack)),
		HaveField("Goroutines", BeNumerically("<=", before.Goroutines+slack)),
	), "%s of %s held %+v before", daemon, node, before)
}

// Memory of closed connections that stays with ztunnel is istio/ztunnel#1630 (open).
var _ = Describe("connections that close", func() {
	It("leave ztunnel with the descriptors and goroutines that it had", world.OwnLab, Label("TR-08"), func(ctx SpecContext) {
		openAndClose(ctx, 400, 1)
	}, SpecTimeout(world.Budget.LongSpec))

	It("leave ztunnel, ten thousand of them at once, within 30 s with 1.5 times the memory that it had", world.OwnLab, Label("TR-08", "slow"), func(ctx SpecContext) {
		l, nodes := openAndClose(ctx, 400, 1) // so that what only the first connections cost is there
		before := map[string]int{}
		for _, node := range nodes {
			before[node] = rss(ctx, l, node)
		}
		hold(ctx, l, 2500, 4)
		for _, node := range nodes {
			Eventually(rss).WithContext(ctx).WithArguments(l, node).WithTimeout(30*time.Second).WithPolling(time.Second).
				Should(BeNumerically("<=", before[node]*3/2), "KiB of the ztunnel of %s, %d before", node, before[node])
			AddReportEntry("RSS of "+node, fmt.Sprintf("%d KiB before, %d KiB after", before[node], rss(ctx, l, node)))
		}
	}, SpecTimeout(world.Budget.LongSpec))
})

// openAndClose holds connections open and expects nothing of them to be left with either ztunnel.
func openAndClose(ctx SpecContext, n, clients int) (*world.World, []string) {
	GinkgoHelper()
	l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
	Expect(err).NotTo(HaveOccurred())
	hold(ctx, l, 10, 1) // pools, certificates
	nodes := l.Nodes()
	before := map[string]holding{}
	for _, node := range nodes {
		before[node] = held(ctx, l, node, lab.DaemonZtunnel)
	}
	most := hold(ctx, l, n, clients)
	for _, node := range nodes {
		Expect(most[node].Descriptors).To(BeNumerically(">", before[node].Descriptors+float64(n*clients)/2), "control: %s held them", node)
		expectHeld(ctx, l, node, lab.DaemonZtunnel, before[node])
	}
	return l, nodes
}

// hold opens n connections in each of some clients at once, and returns when all have closed, with what both ztunnels held
// while they were open.
func hold(ctx SpecContext, l *world.World, n, clients int) map[string]holding {
	GinkgoHelper()
	var flows []*world.Flow
	for range clients {
		flows = append(flows, l.Begin(ctx, "shop/web", url(l, "tcp", "shop/cart", 9000), crowd(n)))
	}
	for _, node := range l.Nodes() {
		Eventually(l.OpenTunnels).WithContext(ctx).WithArguments(node).WithTimeout(world.Budget.Propagation).WithPolling(10*world.Budget.Poll).
			Should(BeNumerically(">=", n*clients), "%s carries them", node)
	}
	most := map[string]holding{}
	for _, node := range l.Nodes() {
		most[node] = held(ctx, l, node, lab.DaemonZtunnel)
	}
	for _, f := range flows {
		res := f.Finish()
		Expect(res.OK).To(Equal(n), "%v", res.Errors)
	}
	return most
}

// rss is VmRSS of a node's ztunnel, in KiB.
func rss(ctx SpecContext, l *world.World, node string) int {
	GinkgoHelper()
	status, err := l.Daemon(node, lab.DaemonZtunnel).Status(ctx)
	Expect(err).NotTo(HaveOccurred())
	if status.PID == 0 {
		Skip("this driver does not tell a daemon's process id")
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", status.PID))
	Expect(err).NotTo(HaveOccurred())
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			Expect(err).NotTo(HaveOccurred())
			return n
		}
	}
	Fail("no VmRSS in " + string(text))
	return 0
}
