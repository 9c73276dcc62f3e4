// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"fmt"
	"math/rand"
	"net/netip"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/wire"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// secret is looked for on the wire; it is sent as a header, so it appears as it is in plain text.
const secret = "the-sleepy-fox-2718"

// back is how soon after a daemon is ready again new connections must work, on a machine that has the time.
const back = 2 * time.Second

// patience is what back comes to on a machine that has other work: so much longer as a call takes there while nothing is
// wrong, which on a quiet one is 20 ms.
func patience(ctx SpecContext, l *world.World, from, url string) time.Duration {
	GinkgoHelper()
	const count = 3
	began := time.Now()
	for range count {
		res, err := l.Call(ctx, l.Pod(from).PodRef, url, workload.Options{Timeout: world.Budget.Call})
		Expect(err).NotTo(HaveOccurred())
		Expect(res.OK).To(Equal(1), "control: before anything is done %s reaches %s: %v", from, url, res.Errors)
	}
	return back + 20*time.Since(began)/count
}

// victim is a daemon of the lab.
type victim struct{ node, name string }

func (v victim) String() string { return v.name + " " + v.node }

func victims(l *world.World) []victim {
	list := []victim{{"", lab.DaemonControl}}
	for _, node := range l.Nodes() {
		list = append(list, victim{node, lab.DaemonZtunnel}, victim{node, lab.DaemonCNIAgent})
	}
	return list
}

// A restart of ztunnel has once let a captured client through in plain text (istio/istio#42610), and its end cuts what it
// carried (#48949). Here the rules stand whoever is gone, so that a captured pod reaches nobody meanwhile, and what was
// answered was whole.
var _ = Describe("daemons that are killed", func() {
	It("are back within two seconds, in any order, without a word in plain text or a byte lost", world.OwnLab, Label("LC-03", "LC-05"), func(ctx SpecContext) {
		killAll(ctx, 1, func(list []victim, random *rand.Rand) [][]victim { return [][]victim{list} })
	}, SpecTimeout(world.Budget.LongSpec))

	It("are back one by one, again and again", world.OwnLab, Label("LC-03", "LC-05", "slow"), func(ctx SpecContext) {
		killAll(ctx, 3, func(list []victim, _ *rand.Rand) [][]victim {
			var each [][]victim
			for _, v := range list {
				each = append(each, []victim{v})
			}
			return each
		})
	}, SpecTimeout(world.Budget.LongSpec))
})

// killAll kills and starts daemons in groups, in an order that the seed decides, while a captured client and one outside the
// mesh transfer bytes that the server checks.
func killAll(ctx SpecContext, times int, group func([]victim, *rand.Rand) [][]victim) {
	GinkgoHelper()
	world.Shared().Needs(lab.CapSignal, lab.CapStopped) // kubelet waits longer each time before it starts again what was killed
	l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
	Expect(err).NotTo(HaveOccurred())
	l.Needs(lab.CapSignal, lab.CapCapture)
	random := rand.New(rand.NewSource(GinkgoRandomSeed()))
	web, cart := l.Pod("shop/web"), l.Pod("shop/cart")
	// Of HBONE the beginnings, of everything else all of it: minutes of transfers would fill the memory.
	begun := record(ctx, l, lab.Target{Pod: web.PodRef, Interface: "eth0", Filter: "tcp and syn"})
	others := record(ctx, l, lab.Target{Node: web.Node, Filter: "tcp and not port 15008"})
	transfer := workload.Options{HalfClose: true, Size: 64 << 10, Download: 64 << 10, Interval: 10 * time.Millisecond, Concurrency: 4, Timeout: 3 * time.Second}
	plain := transfer
	plain.Size, plain.Download = 1<<10, 1<<10
	flows := []*world.Flow{
		l.Begin(ctx, "shop/web", at(cart, "tcp", 9000), transfer),
		l.Begin(ctx, "shop/web", at(cart, "http", 8080), workload.Options{Header: []string{"x-secret: " + secret}, Interval: 10 * time.Millisecond, Timeout: 3 * time.Second}),
		l.Begin(ctx, "plain/batch", at(cart, "tcp", 9000), plain),
	}
	for range times {
		list := victims(l)
		random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for _, dead := range group(list, random) {
			killAndStart(ctx, l, dead, random)
		}
	}
	for _, f := range flows {
		res := f.Finish()
		AddReportEntry("calls of "+f.From, fmt.Sprintf("%d whole, %d failed %v", res.OK, res.Failed, res.Errors))
		Expect(res.OK).To(BeNumerically(">", 0), "control: the calls of %s ran", f.From)
		Expect(res.Errors[workload.ClassMismatch]).To(BeZero(), "%s: what was answered was not what was sent", f.From)
	}
	expectNoPlainText(stopped(ctx, begun), stopped(ctx, others), web, cart)
}

// killAndStart kills daemons one after the other, starts them in another order, and expects calls to work in time.
func killAndStart(ctx SpecContext, l *world.World, dead []victim, random *rand.Rand) {
	GinkgoHelper()
	cart, clients := l.Pod("shop/cart"), []string{"shop/web", "plain/batch"}
	within := map[string]time.Duration{}
	for _, from := range clients {
		within[from] = patience(ctx, l, from, at(cart, "http", 8080))
	}
	for _, v := range dead {
		By("killing " + v.String())
		Expect(l.Daemon(v.node, v.name).Signal(ctx, syscall.SIGKILL)).To(Succeed())
	}
	random.Shuffle(len(dead), func(i, j int) { dead[i], dead[j] = dead[j], dead[i] })
	for _, v := range dead {
		By("starting " + v.String())
		Expect(l.Daemon(v.node, v.name).Start(ctx)).To(Succeed())
	}
	for _, v := range dead {
		Expect(l.Daemon(v.node, v.name).Ready(ctx)).To(Succeed(), v.String())
	}
	ready := time.Now()
	for _, from := range clients {
		Eventually(func(ctx SpecContext) (bool, error) {
			res, err := l.Call(ctx, l.Pod(from).PodRef, at(cart, "http", 8080), workload.Options{Timeout: back})
			return res.OK == 1, err
		}).WithContext(ctx).WithTimeout(within[from]).WithPolling(world.Budget.Poll).Should(BeTrue(), "calls of %s after %v were ready", from, dead)
	}
	AddReportEntry(fmt.Sprintf("%v", dead), fmt.Sprintf("calls work %s after the last was ready", time.Since(ready).Round(time.Millisecond)))
}

func record(ctx SpecContext, l *world.World, t lab.Target) lab.Capture {
	GinkgoHelper()
	c, err := l.Capture(ctx, t)
	Expect(err).NotTo(HaveOccurred())
	return c
}

// stopped is what was recorded; a recording that lost packets proves nothing.
func stopped(ctx SpecContext, c lab.Capture) *wire.Capture {
	GinkgoHelper()
	pcapng, drops, err := c.Stop(ctx)
	Expect(err).NotTo(HaveOccurred())
	Expect(drops).To(BeZero())
	packets, err := wire.Read(bytes.NewReader(pcapng))
	Expect(err).NotTo(HaveOccurred())
	return packets
}

// expectNoPlainText: all that the captured client began towards the captured server was HBONE; on its node's wire there was
// nothing else between the two, and the secret nowhere.
func expectNoPlainText(begun, others *wire.Capture, web, cart lab.PodInfo) {
	GinkgoHelper()
	between := func(c *wire.Capture) (list []*wire.Flow) {
		for _, f := range c.Flows() {
			if f.Src.Addr().Unmap() == web.Addr(false) && f.Dst.Addr().Unmap() == cart.Addr(false) {
				list = append(list, f)
			}
		}
		return list
	}
	Expect(between(begun)).NotTo(BeEmpty(), "control: the pod's connections were recorded")
	for _, f := range between(begun) {
		Expect(f.Dst.Port()).To(Equal(mesh.PortHBONE), "an escape: %s", f)
	}
	Expect(between(others)).To(BeEmpty(), "an escape")
	Expect(others.Contains([]byte(secret))).To(BeFalse(), "application bytes on the wire")
	Expect(others.To(9000)).NotTo(BeEmpty(), "control: the plain client's calls were recorded")
}

// observed is a call that must have taken the path.
func observed(ctx SpecContext, l *world.World, from, url string) *world.Observation {
	GinkgoHelper()
	obs := observe(ctx, l, from, url)
	Expect(obs).To(expect.Tunnelled())
	return obs
}

func at(p lab.PodInfo, scheme string, port uint16) string {
	return fmt.Sprintf("%s://%s", scheme, netip.AddrPortFrom(p.Addr(false), port))
}
