// SPDX-License-Identifier: Apache-2.0

// Package security holds the scenarios about what must not be possible: traffic that escapes the mesh, calls that reach
// a proxy's own ports, and secrets that a pod could read.
package security

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/wire"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var w = world.Shared()

// secret is looked for on the wire; it is sent as a header, so it appears as it is in plain text.
const secret = "the-lazy-dog-1729"

var _ = Describe("a pod that should be in the mesh", func() {
	It("does not start while the agent cannot enrol it, and sends nothing in plain text", world.LongOwnLab, Label("SE-07"), func(ctx SpecContext) {
		l := twoNodes(ctx)
		l.Needs(lab.CapSignal, lab.CapCapture)
		cart := url(l.Pod("shop/cart"))
		agent := l.Daemon("node1", lab.DaemonCNIAgent)
		Expect(agent.Stop(ctx)).To(Succeed())
		recording := record(ctx, l, "node1")
		late := l.ClonePod("shop/web", "late") // it calls from its first moment on
		late.Spec.Containers[0].Command = workload.Command(cart, workload.Options{
			Interval: 20 * time.Millisecond, Duration: time.Minute, Header: []string{"x-secret: " + secret},
		})
		Expect(l.Apply(ctx, late)).To(Succeed())
		ref := lab.PodRef{Namespace: "shop", Name: "late"}

		By("refusing the pod's network, and saying why")
		Eventually(l.PodProblem).WithContext(ctx).WithArguments(ref).WithTimeout(world.Budget.Propagation).
			Should(ContainSubstring("agent"))
		pod, err := l.Find(ctx, ref)
		Expect(err).NotTo(HaveOccurred())
		Expect(pod.Ready).To(BeFalse())

		By("letting it start once the agent is back, captured from its first packet")
		Expect(agent.Start(ctx)).To(Succeed())
		pod, err = l.WaitPod(ctx, ref, func(p lab.PodInfo) bool { return p.Enrolled })
		Expect(err).NotTo(HaveOccurred())
		_, err = l.WaitEntry(ctx, "node2", time.Time{}, func(e telemetry.Entry) bool {
			return e.Record.Src.Name == "late" && e.Record.Src.Identity == expect.Identity(pod)
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(recording.stop(ctx).Contains([]byte(secret))).To(BeFalse(), "the pod's calls were on the wire in plain text")

		By("control: the same call of a pod outside the mesh is seen")
		recording = record(ctx, l, "node1")
		plain, err := l.Call(ctx, l.Pod("plain/batch").PodRef, url(l.Pod("plain/ledger")), workload.Options{Header: []string{"x-secret: " + secret}})
		Expect(err).NotTo(HaveOccurred())
		Expect(plain.OK).To(Equal(1))
		Expect(recording.stop(ctx).Contains([]byte(secret))).To(BeTrue())
	}, SpecTimeout(world.Budget.LongSpec))

	It("fails closed while its ztunnel is gone, and plain pods go on", world.OwnLab, Label("SE-07"), func(ctx SpecContext) {
		l := twoNodes(ctx)
		l.Needs(lab.CapSignal)
		web, batch := l.Pod("shop/web"), l.Pod("plain/batch")
		ledger := url(l.Pod("plain/ledger")) // it needs no ztunnel: only web's own stands between them
		before, err := l.Observe(ctx, web, ledger, workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(before).To(expect.PlainOutbound(), "control: with its ztunnel web reaches it")

		zt := l.Daemon("node1", lab.DaemonZtunnel)
		Expect(zt.Signal(ctx, syscall.SIGKILL)).To(Succeed())
		Expect(zt.Stop(ctx)).To(Succeed()) // where somebody starts again what was killed
		Eventually(func(ctx SpecContext) (bool, error) {
			s, err := zt.Status(ctx)
			return s.Running, err
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeFalse())
		res, err := l.Call(ctx, web.PodRef, ledger, workload.Options{Count: 20, Timeout: 2 * time.Second})
		Expect(err).NotTo(HaveOccurred())
		Expect(res.OK).To(BeZero(), "a captured pod escaped its proxy: %v", res.Errors)
		plain, err := l.Call(ctx, batch.PodRef, ledger, workload.Options{Count: 20, Timeout: world.Budget.Call})
		Expect(err).NotTo(HaveOccurred())
		Expect(plain.OK).To(Equal(20), "a pod outside the mesh must not notice: %v", plain.Errors)

		Expect(zt.Start(ctx)).To(Succeed())
		Expect(zt.Ready(ctx)).To(Succeed())
		after, err := l.Observe(ctx, web, url(l.Pod("shop/cart")), workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(after).To(expect.Tunnelled())
	}, SpecTimeout(world.Budget.LongSpec))

	It("sees neither the lab's secrets nor other pods' tokens", Label("SE-07"), func(ctx SpecContext) {
		hidden := []string{"/var/run/ztunnel", "/var/run/istio-cni"}
		if w.Dir != "" { // it is a lab of this host
			hidden = append(hidden, w.Dir, w.Dir+"/hold.sock", w.Dir+"/ca")
		}
		const own = "/etc/hostname"
		out, err := w.Output(ctx, w.Pod("shop/web").PodRef, append([]string{"workload", "look", own}, hidden...)...)
		Expect(err).NotTo(HaveOccurred())
		var seen map[string]workload.Look
		Expect(json.Unmarshal(out, &seen)).To(Succeed())
		for _, path := range hidden {
			Expect(seen[path].Entries).To(BeEmpty(), "%s is visible in a pod", path)
			Expect(seen[path].Exists).To(BeFalse(), "%s is visible in a pod", path)
		}
		Expect(seen[own].Exists).To(BeTrue(), "control: what the pod may see it sees")
	}, SpecTimeout(world.Budget.Spec))
})

func twoNodes(ctx SpecContext) *world.World {
	GinkgoHelper()
	l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
	Expect(err).NotTo(HaveOccurred())
	return l
}

// borrowed is a lab for a scenario that does nothing to daemons.
func borrowed(ctx SpecContext) *world.World {
	GinkgoHelper()
	l, err := world.Borrow(ctx, "two-nodes")
	Expect(err).NotTo(HaveOccurred())
	return l
}

func url(p lab.PodInfo) string {
	return fmt.Sprintf("http://%s", netip.AddrPortFrom(p.Addr(false), 8080))
}

type recording struct{ lab.Capture }

func record(ctx SpecContext, l *world.World, node string) recording {
	GinkgoHelper()
	c, err := l.Capture(ctx, lab.Target{Node: node, Filter: world.OnTheWire})
	Expect(err).NotTo(HaveOccurred())
	return recording{c}
}

// stop ends the recording; one that lost packets proves nothing.
func (r recording) stop(ctx SpecContext) *wire.Capture {
	GinkgoHelper()
	pcapng, drops, err := r.Stop(ctx)
	Expect(err).NotTo(HaveOccurred())
	Expect(drops).To(BeZero())
	packets, err := wire.Read(bytes.NewReader(pcapng))
	Expect(err).NotTo(HaveOccurred())
	return packets
}
