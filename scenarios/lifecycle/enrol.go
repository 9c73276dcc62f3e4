// SPDX-License-Identifier: Apache-2.0

// Package lifecycle holds the scenarios about change: pods that join and leave the mesh, daemons that come and go.
package lifecycle

import (
	"fmt"
	"net/netip"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// transition is how long after a change of label new connections may still fail, and half of it after the pods say that the
// change is there, should that be later: rules are installed before the proxy's listeners, so that nothing leaves in plain
// text in between. Upstream accepts any failures up to half of all calls
// (istio/istio#53064); here each failure must be explained by a change.
const transition = time.Second

var _ = Describe("enrolment by label", func() {
	It("joins, leaves and joins again under load without a restart, by pod", Label("LC-01"), func(ctx SpecContext) {
		underLoad(ctx, true, func(l *world.World, enrol bool) runtime.Object {
			pod := l.PodObject("shop/cart")
			pod.Labels[mesh.LabelDataplaneMode] = mesh.ModeNone
			if enrol {
				pod.Labels[mesh.LabelDataplaneMode] = mesh.ModeAmbient
			}
			return pod
		})
	}, SpecTimeout(world.Budget.LongSpec))

	It("joins, leaves and joins again under load without a restart, by namespace", Label("LC-01"), func(ctx SpecContext) {
		underLoad(ctx, false, func(l *world.World, enrol bool) runtime.Object {
			ns := l.NamespaceObject("shop")
			delete(ns.Labels, mesh.LabelDataplaneMode)
			if enrol {
				ns.Labels[mesh.LabelDataplaneMode] = mesh.ModeAmbient
			}
			return ns
		})
	}, SpecTimeout(world.Budget.LongSpec))
})

// underLoad toggles the server's enrolment while a client outside the mesh and one inside call it, and checks after each
// change that the path is the right one, that the rules are there or gone, and that the server's process is the same.
func underLoad(ctx SpecContext, onePod bool, change func(l *world.World, enrol bool) runtime.Object) {
	GinkgoHelper()
	l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
	Expect(err).NotTo(HaveOccurred())
	l.Needs(lab.CapInspect)
	cart := l.Pod("shop/cart")
	url := fmt.Sprintf("http://%s", netip.AddrPortFrom(cart.Addr(false), 8080))
	first := observe(ctx, l, "plain/batch", url)
	Expect(first).To(expect.PlainInbound())

	for _, enrol := range []bool{false, true, false, true} {
		loads := []*load{start(ctx, l, "plain/batch", url), start(ctx, l, "shop/web", url)}
		changed := time.Now()
		Expect(l.Apply(ctx, change(l, enrol))).To(Succeed())
		_, err := l.WaitPod(ctx, cart.PodRef, func(p lab.PodInfo) bool { return p.Enrolled == enrol && p.Ready })
		Expect(err).NotTo(HaveOccurred())
		_, err = l.WaitPod(ctx, l.Pod("shop/web").PodRef, func(p lab.PodInfo) bool { return p.Enrolled == (enrol || onePod) })
		Expect(err).NotTo(HaveOccurred())
		explained := changed.Add(transition)
		if later := time.Now().Add(transition / 2); later.After(explained) {
			explained = later
		}
		for _, ld := range loads {
			ld.finish(explained)
		}

		rules, err := l.Inspect(ctx, lab.Target{Pod: cart.PodRef})
		Expect(err).NotTo(HaveOccurred())
		outside, inside := observe(ctx, l, "plain/batch", url), observe(ctx, l, "shop/web", url)
		if enrol {
			Expect(rules.Rules).To(ContainSubstring("istio-ambient-nat"))
			Expect(outside).To(expect.PlainInbound())
			Expect(inside).To(expect.Tunnelled())
		} else {
			Expect(rules.Rules).NotTo(ContainSubstring("istio-ambient"), "unenrolled, yet rules are left")
			Expect(outside).NotTo(expect.PlainInbound(), "control: out of the mesh, its ztunnel takes no part")
			Expect(inside).NotTo(expect.Tunnelled())
			Expect(outside.Call.OK && inside.Call.OK).To(BeTrue())
		}
		Expect(outside.Call.Seen.Started).To(Equal(first.Call.Seen.Started), "the server was restarted")
	}
}

// load is a client that opens a connection every 20 ms, before, during and after a change.
type load struct {
	from string
	res  chan workload.Result
	err  error // read after res
}

func start(ctx SpecContext, l *world.World, from, url string) *load {
	ld := &load{from: from, res: make(chan workload.Result, 1)}
	o := workload.Options{Interval: 20 * time.Millisecond, Duration: transition * 3 / 2, Timeout: time.Second}
	go func() {
		res, err := l.Call(ctx, l.Pod(from).PodRef, url, o)
		ld.err = err
		ld.res <- res
	}()
	return ld
}

// finish waits for the load's end. No call that was made later than a change explains may have failed.
func (ld *load) finish(explained time.Time) {
	GinkgoHelper()
	res := <-ld.res
	Expect(ld.err).NotTo(HaveOccurred())
	Expect(res.OK).To(BeNumerically(">", 5), "control: the load of %s ran: %v", ld.from, res.Errors)
	for _, c := range res.Calls {
		Expect(c.OK || c.Start.Before(explained)).To(BeTrue(),
			"%s: a call failed %s after the change explains it: %s %s", ld.from, c.Start.Sub(explained), c.Class, c.Error)
	}
}

func observe(ctx SpecContext, l *world.World, from, url string) *world.Observation {
	GinkgoHelper()
	obs, err := l.Observe(ctx, l.Pod(from), url, workload.Options{})
	Expect(err).NotTo(HaveOccurred(), "%v", obs)
	return obs
}
