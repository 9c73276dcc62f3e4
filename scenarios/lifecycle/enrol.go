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

// transition is how long after a change of label new connections may still fail: rules are installed before the proxy's
// listeners, so that nothing leaves in plain text in between. Upstream accepts any failures up to half of all calls
// (istio/istio#53064); here each failure must be explained by a change.
const transition = time.Second

var _ = Describe("enrolment by label", func() {
	It("joins, leaves and joins again under load without a restart, by pod", Label("LC-01"), func(ctx SpecContext) {
		underLoad(ctx, func(l *world.World, enrol bool) runtime.Object {
			pod := l.PodObject("shop/cart")
			pod.Labels[mesh.LabelDataplaneMode] = mesh.ModeNone
			if enrol {
				pod.Labels[mesh.LabelDataplaneMode] = mesh.ModeAmbient
			}
			return pod
		})
	}, SpecTimeout(world.Budget.LongSpec))

	It("joins, leaves and joins again under load without a restart, by namespace", Label("LC-01"), func(ctx SpecContext) {
		underLoad(ctx, func(l *world.World, enrol bool) runtime.Object {
			ns := l.NamespaceObject("shop")
			delete(ns.Labels, mesh.LabelDataplaneMode)
			if enrol {
				ns.Labels[mesh.LabelDataplaneMode] = mesh.ModeAmbient
			}
			return ns
		})
	}, SpecTimeout(world.Budget.LongSpec))
})

// underLoad toggles the server's enrolment while an uncaptured client calls it, and checks after each change that the
// path is the right one and that the rules are there or gone.
func underLoad(ctx SpecContext, change func(l *world.World, enrol bool) runtime.Object) {
	GinkgoHelper()
	l, err := world.Start(ctx, "two-pods", lab.UpOptions{})
	Expect(err).NotTo(HaveOccurred())
	l.Needs(lab.CapInspect)
	client := startOutsider(ctx, l)
	cart := l.Pod("shop/cart")
	url := fmt.Sprintf("http://%s", netip.AddrPortFrom(cart.Addr(false), 8080))

	load := make(chan workload.Result, 1)
	loadErr := make(chan error, 1)
	go func() {
		defer GinkgoRecover()
		res, err := l.Call(ctx, client.PodRef, url, workload.Options{Interval: 20 * time.Millisecond, Duration: 6 * time.Second, Timeout: time.Second})
		load <- res
		loadErr <- err
	}()

	var changes []time.Time
	for _, enrol := range []bool{false, true, false, true} {
		changes = append(changes, time.Now())
		Expect(l.Apply(ctx, change(l, enrol))).To(Succeed())
		_, err := l.WaitPod(ctx, cart.PodRef, func(p lab.PodInfo) bool { return p.Enrolled == enrol && p.Ready })
		Expect(err).NotTo(HaveOccurred())
		settled, err := l.Call(ctx, client.PodRef, url, workload.Options{Count: 20, Timeout: time.Second})
		Expect(err).NotTo(HaveOccurred())
		Expect(settled.Failed).To(BeZero(), "after the change has taken effect nothing may fail: %v", settled.Errors)
		rules, err := l.Inspect(ctx, lab.Target{Pod: cart.PodRef})
		Expect(err).NotTo(HaveOccurred())
		if enrol {
			Expect(rules.Rules).To(ContainSubstring("istio-ambient-nat"))
		} else {
			Expect(rules.Rules).NotTo(ContainSubstring("istio-ambient"), "unenrolled, yet rules are left")
		}
	}
	res := <-load
	Expect(<-loadErr).NotTo(HaveOccurred())
	Expect(res.OK).To(BeNumerically(">", 100), "control: the load ran: %v", res.Errors)
	for _, c := range res.Calls {
		Expect(c.OK || near(c.Start, changes)).To(BeTrue(), "a call failed that no change explains: %s %s at %s, changes at %v", c.Class, c.Error, c.Start, changes)
	}

	after, err := l.Observe(ctx, client, url, workload.Options{})
	Expect(err).NotTo(HaveOccurred())
	Expect(after).To(expect.PlainInbound(), "enrolled again, its ztunnel takes part")
	inside, err := l.Observe(ctx, l.Pod("shop/web"), url, workload.Options{})
	Expect(err).NotTo(HaveOccurred())
	Expect(inside).To(expect.Tunnelled())
	same, err := l.Find(ctx, cart.PodRef)
	Expect(err).NotTo(HaveOccurred())
	Expect(same.UID).To(Equal(cart.UID), "control: the pod was never replaced")
}

// startOutsider adds a pod that no label enrols.
func startOutsider(ctx SpecContext, l *world.World) lab.PodInfo {
	GinkgoHelper()
	pod := l.ClonePod("shop/web", "outsider")
	pod.Labels = map[string]string{"app": "outsider", mesh.LabelDataplaneMode: mesh.ModeNone}
	Expect(l.Apply(ctx, pod)).To(Succeed())
	info, err := l.WaitPod(ctx, lab.PodRef{Namespace: pod.Namespace, Name: pod.Name}, func(p lab.PodInfo) bool { return p.Ready })
	Expect(err).NotTo(HaveOccurred())
	return info
}

func near(t time.Time, changes []time.Time) bool {
	for _, c := range changes {
		if t.After(c.Add(-time.Second)) && t.Before(c.Add(transition)) {
			return true
		}
	}
	return false
}
