// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// paths are what crosses from node1 to node2: a tunnel, plain text in and out of the mesh, and the control without any proxy.
var paths = [][2]string{{"shop/web", "shop/cart"}, {"shop/web", "plain/ledger"}, {"plain/batch", "shop/cart"}, {"plain/batch", "plain/ledger"}}

// quick is more than a call takes in a lab whose links are good, on a machine that has other work.
const quick = 50 * time.Millisecond

var _ = Describe("a link that is not good", func() {
	for _, link := range []struct {
		name, a, b string
		delays     []time.Duration
	}{
		{"between two nodes", "node1", "node2", []time.Duration{20 * time.Millisecond, 50 * time.Millisecond}},
		{"of a pod", "node2", "shop/cart", []time.Duration{20 * time.Millisecond}},
	} {
		It("delays what crosses it by as much as it says, and nothing else, "+link.name, world.OwnLab, Label("FI-01"), func(ctx SpecContext) {
			l := impairable(ctx)
			cable := l.Link(link.a, link.b)
			for _, delay := range link.delays {
				impair(ctx, cable, lab.Impairment{Delay: delay})
				atOnce(func(from, to string) {
					call(ctx, l, from, to, 9000, workload.Options{PingPong: 1}) // finds neighbours, makes the tunnel's connection
				})
				fastest := map[[2]string]workload.Call{}
				Eventually(func(g Gomega) { // what else the machine does passes; a delay that is too long would stay
					measure(ctx, l, fastest)
					for _, p := range paths {
						expectDelay(g, p, fastest[p], delay, link.b == "node2" || p[1] == link.b)
					}
				}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(Succeed())
			}
			Expect(cable.Restore(ctx)).To(Succeed())
			Eventually(func() time.Duration {
				return call(ctx, l, "plain/batch", "shop/cart", 9000, workload.Options{PingPong: exchanges}).Latency
			}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeNumerically("<", 7*quick), "control: restored")
		}, SpecTimeout(world.Budget.Spec))
	}

	It("loses, doubles and reorders packets, and no byte", world.OwnLab, Label("FI-01"), func(ctx SpecContext) {
		l := impairable(ctx)
		cable := l.Link("node1", "node2")
		const size = 256 << 10
		impair(ctx, cable, lab.Impairment{
			Delay: 5 * time.Millisecond, Jitter: time.Millisecond, Loss: 0.05, Duplicate: 0.01, Reorder: 0.02, Seed: 1,
		})
		transfer := func() (sentAgain int64, there lab.Passed) {
			GinkgoHelper()
			before, was := tcpCounters(ctx, l), passed(ctx, cable).There
			o, err := l.Observe(ctx, l.Pod("shop/web"), url(l, "tcp", "shop/cart", 9000), bothWays(size))
			Expect(err).NotTo(HaveOccurred(), "%v", o)
			Expect(o).To(expect.Tunnelled()) // an echo; the rest of the evidence is that caller and server checked every byte
			there = passed(ctx, cable).There
			there.Lost, there.Reordered = there.Lost-was.Lost, there.Reordered-was.Reordered
			return tcpCounters(ctx, l)["RetransSegs"] - before["RetransSegs"], there
		}
		sent, carried := transfer()
		Expect(sent).To(BeNumerically(">=", 4), "what was lost was sent again")
		atOnce(func(from, to string) { call(ctx, l, from, to, 9000, bothWays(size)) })
		traffic := passed(ctx, cable)
		for _, d := range []lab.Passed{traffic.There, traffic.Back} {
			Expect(d.Overflowed).To(BeZero())
			Expect(float64(d.Lost)/float64(d.Packets)).To(BeNumerically("~", 0.05, 0.03), "%+v", d)
			Expect(d.Duplicated).To(BeNumerically(">", 0), "%+v", d)
			Expect(d.Reordered).To(BeNumerically(">", 0), "%+v", d)
		}
		// On a busy machine a sender sends again what is only late; not each time.
		most := sent
		if most > much(carried) {
			Eventually(func() bool {
				most, carried = transfer()
				return most <= much(carried)
			}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "and not much more than that: %d of %+v", most, carried)
		}

		Expect(cable.Restore(ctx)).To(Succeed())
		Eventually(func() int64 {
			before := tcpCounters(ctx, l)
			call(ctx, l, "shop/web", "shop/cart", 9000, bothWays(size))
			return tcpCounters(ctx, l)["RetransSegs"] - before["RetransSegs"]
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeNumerically("<=", sent/4), "control: a good link needs hardly any second sending")
	}, SpecTimeout(world.Budget.Spec))

	It("slows the control plane's word down, and loses none of it", world.OwnLab, Label("FI-01"), func(ctx SpecContext) {
		l := impairable(ctx)
		cable := l.Link("node1", "istio-system/istiod")
		const delay = 50 * time.Millisecond
		known := func(name string) time.Duration {
			GinkgoHelper()
			s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
			s.Spec.Selector = map[string]string{"app": "cart"}
			s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}}
			began := time.Now()
			Expect(l.Apply(ctx, s)).To(Succeed())
			host := name + ".shop.svc.cluster.local"
			Eventually(func() (bool, error) {
				d, err := l.ConfigDump(ctx, "node2")
				for _, known := range d.Services {
					if known.Hostname == host {
						return true, err
					}
				}
				return false, err
			}).WithContext(ctx).WithTimeout(world.Budget.Propagation).WithPolling(time.Millisecond).Should(BeTrue())
			return time.Since(began)
		}
		good := known("early")
		impair(ctx, cable, lab.Impairment{Delay: delay, Loss: 0.05, Seed: 1})
		for i := range 5 {
			Expect(known(fmt.Sprintf("late-%d", i))).To(BeNumerically(">=", delay), "control: with a good link it took %s", good)
		}
		Eventually(func() time.Duration { return call(ctx, l, "shop/web", "shop/cart", 8080, workload.Options{}).Latency }).WithContext(ctx).
			WithTimeout(world.Budget.Evidence).Should(BeNumerically("<", quick*2), "control: the pods' own traffic does not wait for it")
		Expect(cable.Restore(ctx)).To(Succeed())
	}, SpecTimeout(world.Budget.Spec))
})

// exchanges are made on one connection.
const exchanges = 5

// atOnce makes the calls of every path at the same time, and waits for them.
func atOnce(each func(from, to string)) {
	var wg sync.WaitGroup
	for _, p := range paths {
		wg.Go(func() {
			defer GinkgoRecover()
			each(p[0], p[1])
		})
	}
	wg.Wait()
}

// measure makes a call on every path at the same time, and keeps the fastest of each.
func measure(ctx SpecContext, l *world.World, fastest map[[2]string]workload.Call) {
	GinkgoHelper()
	var mu sync.Mutex
	atOnce(func(from, to string) {
		p, c := [2]string{from, to}, call(ctx, l, from, to, 9000, workload.Options{PingPong: exchanges, Size: 100})
		mu.Lock()
		defer mu.Unlock()
		if was, ok := fastest[p]; ok {
			c.Latency, c.FirstByte, c.Connect = min(c.Latency, was.Latency), min(c.FirstByte, was.FirstByte), min(c.Connect, was.Connect)
		}
		fastest[p] = c
	})
}

// expectDelay judges the fastest of one path's calls over a link that delays each packet. None may be faster than the link; that
// it is slower, g judges.
func expectDelay(g Gomega, p [2]string, c workload.Call, delay time.Duration, crosses bool) {
	GinkgoHelper()
	trip := 2 * delay
	if !crosses {
		g.Expect(c.Latency).To(BeNumerically("<", 7*quick), "control: %s does not cross the link", p[1])
		return
	}
	// A connect and the exchange that says who is there, or the CONNECT of a stream and that; then the exchanges.
	Expect(c.Latency).To(BeNumerically(">=", (exchanges+2)*trip), "%v with %s", p, delay)
	Expect(c.FirstByte).To(BeNumerically(">=", 2*trip), "%v with %s", p, delay)
	g.Expect(c.Latency).To(BeNumerically("<", (exchanges+4)*trip+7*quick), "%v with %s", p, delay)
	if p[0] == "plain/batch" && p[1] == "plain/ledger" {
		Expect(c.Connect).To(BeNumerically(">=", trip), "without a proxy the client waits for its SYN")
		g.Expect(c.Connect).To(BeNumerically("<", trip+2*quick), "without a proxy the client waits for its SYN")
	}
}

// passed is what a link that is impaired has carried.
func passed(ctx SpecContext, cable lab.Link) lab.LinkTraffic {
	GinkgoHelper()
	t, err := cable.Traffic(ctx)
	Expect(err).NotTo(HaveOccurred())
	return t
}

// much is as often as a sender may send again for what a link did.
func much(p lab.Passed) int64 { return int64(p.Lost+p.Reordered) * 3 }

// bothWays sends and receives so much, and both sides check it.
func bothWays(size int64) workload.Options {
	return workload.Options{HalfClose: true, Size: size, Download: size, Timeout: world.Budget.Spec}
}

// twoNodes is a lab of the scenario's own.
func twoNodes(ctx SpecContext, needs ...lab.Capability) *world.World {
	GinkgoHelper()
	world.Shared().Needs(needs...)
	l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
	Expect(err).NotTo(HaveOccurred())
	return l
}

// borrowed is a lab for a scenario that does nothing to daemons and restores links.
func borrowed(ctx SpecContext) *world.World {
	GinkgoHelper()
	world.Shared().Needs(lab.CapLink)
	l, err := world.Borrow(ctx, "two-nodes")
	Expect(err).NotTo(HaveOccurred())
	return l
}

// impairable is a borrowed lab whose links can be made worse.
func impairable(ctx SpecContext) *world.World {
	GinkgoHelper()
	world.Shared().Needs(lab.CapImpair)
	return borrowed(ctx)
}

// impair makes a link worse in both directions.
func impair(ctx SpecContext, cable lab.Link, i lab.Impairment) {
	GinkgoHelper()
	Expect(cable.Impair(ctx, i, i)).To(Succeed())
}

func url(l *world.World, scheme, to string, port uint16) string {
	return fmt.Sprintf("%s://%s", scheme, netip.AddrPortFrom(l.Pod(to).Addr(false), port))
}

func call(ctx SpecContext, l *world.World, from, to string, port uint16, o workload.Options) workload.Call {
	GinkgoHelper()
	scheme := map[uint16]string{8080: "http", 9000: "tcp"}[port]
	if o.Timeout == 0 {
		o.Timeout = world.Budget.Call
	}
	res, err := l.Call(ctx, l.Pod(from).PodRef, url(l, scheme, to, port), o)
	Expect(err).NotTo(HaveOccurred())
	Expect(res.First().OK).To(BeTrue(), "%s to %s: %s", from, to, res.First().Error)
	return res.First()
}

// tcpCounters are the kernel's, of the pod whose calls are judged by them.
func tcpCounters(ctx SpecContext, l *world.World) map[string]int64 {
	GinkgoHelper()
	out, err := l.Output(ctx, l.Pod("shop/web").PodRef, "workload", "counters")
	Expect(err).NotTo(HaveOccurred())
	var counters map[string]int64
	Expect(json.Unmarshal(out, &counters)).To(Succeed())
	return counters
}
