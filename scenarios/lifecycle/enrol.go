// SPDX-License-Identifier: Apache-2.0

// Package lifecycle holds the scenarios about change: pods that join and leave the mesh, daemons that come and go.
package lifecycle

import (
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

var _ = Describe("enrolment by label", func() {
	It("joins, leaves and joins again under load without a restart, by pod", world.OwnLab, Label("LC-01"), func(ctx SpecContext) {
		underLoad(ctx, true, func(l *world.World, enrol bool) runtime.Object {
			pod := l.PodObject("shop/cart")
			pod.Labels[mesh.LabelDataplaneMode] = mesh.ModeNone
			if enrol {
				pod.Labels[mesh.LabelDataplaneMode] = mesh.ModeAmbient
			}
			return pod
		})
	}, SpecTimeout(world.Budget.LongSpec))

	It("joins, leaves and joins again under load without a restart, by namespace", world.OwnLab, Label("LC-01"), func(ctx SpecContext) {
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
//
// New connections may fail until the pods say that the change is there and every proxy knows it: rules are installed before the
// proxy's listeners, so that nothing leaves in plain text in between. Upstream accepts any failures up to half of all calls
// (istio/istio#53064); here each failure must be explained by a change.
func underLoad(ctx SpecContext, onePod bool, change func(l *world.World, enrol bool) runtime.Object) {
	GinkgoHelper()
	l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
	Expect(err).NotTo(HaveOccurred())
	l.Needs(lab.CapInspect)
	cart := l.Pod("shop/cart")
	url := at(cart, "http", 8080)
	first := observe(ctx, l, "plain/batch", url)
	Expect(first).To(expect.PlainInbound())

	for _, enrol := range []bool{false, true, false, true} {
		o := workload.Options{Interval: 20 * time.Millisecond, Concurrency: 16, Timeout: 3 * time.Second} // one that hangs keeps no other
		loads := []*world.Flow{l.Begin(ctx, "plain/batch", url, o), l.Begin(ctx, "shop/web", url, o)}
		Expect(l.Apply(ctx, change(l, enrol))).To(Succeed())
		awaitEnrolment(ctx, l, "shop/cart", enrol)
		awaitEnrolment(ctx, l, "shop/web", enrol || onePod)
		explained := time.Now()
		for _, f := range loads {
			res, err := l.Call(ctx, l.Pod(f.From).PodRef, url, workload.Options{Count: 20, Interval: 20 * time.Millisecond, Timeout: world.Budget.Call})
			Expect(err).NotTo(HaveOccurred())
			Expect(res.Failed).To(BeZero(), "%s, after the change: %v", f.From, res.Errors)
			expectExplained(f, explained)
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

// awaitEnrolment waits until a pod says that it is in the mesh, or out of it, and every proxy knows it.
func awaitEnrolment(ctx SpecContext, l *world.World, name string, enrolled bool) {
	GinkgoHelper()
	pod, err := l.WaitPod(ctx, l.Pod(name).PodRef, func(p lab.PodInfo) bool { return p.Enrolled == enrolled && p.Ready })
	Expect(err).NotTo(HaveOccurred())
	Expect(l.Known(ctx, pod)).To(Succeed())
}

// expectExplained stops a load, of which no call that was made later than a change explains may have failed.
func expectExplained(f *world.Flow, explained time.Time) {
	GinkgoHelper()
	res := f.Finish()
	Expect(res.OK).To(BeNumerically(">", 0), "control: the load of %s ran: %v", f.From, res.Errors)
	for _, c := range res.Calls {
		Expect(c.OK || c.Start.Before(explained)).To(BeTrue(),
			"%s: a call failed %s after the change explains it: %s %s", f.From, c.Start.Sub(explained), c.Class, c.Error)
	}
}
func observe(ctx SpecContext, l *world.World, from, url string) *world.Observation {
	GinkgoHelper()
	obs, err := l.Observe(ctx, l.Pod(from), url, workload.Options{})
	Expect(err).NotTo(HaveOccurred(), "%v", obs)
	return obs
}
