// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// Of a cluster whose API server is away only the nodes and what they run are left: what a mesh asks it for, tokens and objects,
// it must have kept, and what it has not, a new pod's, must wait and not be guessed.
var _ = Describe("an API server that is killed", func() {
	It("is not missed by pods that run, whose certificates go on; new pods wait, then proceed", world.LongOwnLab, Label("FI-02", "LC-06"), func(ctx SpecContext) {
		outage(ctx, 8*time.Second)
	}, SpecTimeout(world.Budget.LongSpec))

	It("is not missed for two minutes either", world.OwnLab, Label("FI-02", "LC-06", "slow"), func(ctx SpecContext) {
		outage(ctx, 2*time.Minute)
	}, SpecTimeout(world.Budget.LongSpec))
})

var _ = Describe("an agent that is parted from the API server", func() {
	It("goes on with the pods that it has, and does what it missed when it is back", world.OwnLab, Label("FI-02"), func(ctx SpecContext) {
		world.Shared().Needs(lab.CapAPIServer, lab.CapLink, lab.CapInspect)
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		cart, target := l.Pod("shop/cart"), url("http", l.Pod("shop/cart"), portHTTP)
		enrol := func(mode string) {
			GinkgoHelper()
			for _, name := range []string{"shop/web", "shop/cart"} {
				p := l.PodObject(name)
				p.Labels[mesh.LabelDataplaneMode] = mode
				Expect(l.Apply(ctx, p)).To(Succeed())
			}
		}
		settled := func(name string, enrolled bool) {
			GinkgoHelper()
			p, err := l.WaitPod(ctx, l.Pod(name).PodRef, func(p lab.PodInfo) bool { return p.Ready && p.Enrolled == enrolled })
			Expect(err).NotTo(HaveOccurred())
			Expect(l.Known(ctx, p)).To(Succeed())
		}
		link := l.Link(cart.Node, lab.DaemonAPIServer)
		Expect(link.Cut(ctx)).To(Succeed())

		By("taking two pods out of the mesh, of which it has one")
		enrol(mesh.ModeNone)
		settled("shop/web", false) // control: the other node's agent heeds it
		Consistently(func(ctx SpecContext) (bool, error) {
			p, err := l.Find(ctx, cart.PodRef)
			return p.Enrolled, err
		}).WithContext(ctx).WithTimeout(missed).Should(BeTrue(), "nobody told it")
		Expect(rules(ctx, l, lab.Target{Pod: cart.PodRef})).To(ContainSubstring("istio-ambient"))
		Expect(observe(ctx, l, l.Pod("plain/batch"), target)).To(expect.PlainInbound(), "its pod is served as before")

		By("bringing it back")
		Expect(link.Restore(ctx)).To(Succeed())
		settled("shop/cart", false)
		Expect(rules(ctx, l, lab.Target{Pod: cart.PodRef})).NotTo(ContainSubstring("istio-ambient"))
		enrol(mesh.ModeAmbient)
		settled("shop/web", true)
		settled("shop/cart", true)
		Expect(observe(ctx, l, l.Pod("shop/web"), target)).To(expect.Tunnelled())
	}, SpecTimeout(world.Budget.LongSpec))
})

// missed is how long an agent is given to heed what it should not know: on an idle cluster it takes less than a second.
const missed = 5 * time.Second

// outage kills the API server for so long, in which every certificate ends at least once.
func outage(ctx SpecContext, lasting time.Duration) {
	GinkgoHelper()
	world.Shared().Needs(lab.CapAPIServer)
	ttl := lasting * 3 / 4
	l, err := world.Start(ctx, "two-nodes", lab.UpOptions{ExecByNode: true, DaemonEnv: map[string][]string{lab.DaemonZtunnel: {"SECRET_TTL=" + ttl.String()}}})
	Expect(err).NotTo(HaveOccurred())
	web, cart, server := l.Pod("shop/web"), l.Pod("shop/cart"), l.Daemon("", lab.DaemonAPIServer)
	late, gate := gated(ctx, l, web.Node)
	flows := []*world.Flow{
		l.Begin(ctx, "shop/web", url("tcp", cart, portTCP), workload.Options{KeepOpen: true, Ledger: true, Interval: 20 * time.Millisecond}),
		l.Begin(ctx, "shop/web", "http://cart.shop", workload.Options{Interval: 50 * time.Millisecond, Timeout: world.Budget.Call}),
		l.Begin(ctx, "plain/batch", "http://cart.shop", workload.Options{Interval: 50 * time.Millisecond, Timeout: world.Budget.Call}),
	}

	By("killing it")
	DeferCleanup(func(ctx SpecContext) { // however the scenario ends; the cluster's next lab needs its controllers too
		Expect(server.Start(ctx)).To(Succeed())
		Expect(server.Ready(ctx)).To(Succeed())
	}, NodeTimeout(world.Budget.Up))
	Expect(server.Stop(ctx)).To(Succeed())
	killed := time.Now()
	next := pod(l, "next", nil)
	Expect(l.Apply(ctx, next)).NotTo(Succeed(), "control: it is away")

	By("letting a pod come as far as its network, on a node that cannot ask whose it is")
	gate()
	for _, f := range flows { // time itself is the condition: they go on for as long
		Consistently(f.Done()).WithContext(ctx).WithTimeout(lasting - time.Since(killed)).ShouldNot(BeClosed())
	}
	res, err := l.Call(ctx, cart.PodRef, url("http", web, portHTTP), workload.Options{Count: 20, Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred())
	Expect(res.Failed).To(BeZero(), "from a pod that has called nobody before, so that it takes a new handshake: %v", res.Errors)
	Expect(time.Since(killed)).To(BeNumerically(">", ttl), "control: all certificates of before have ended")

	By("bringing it back")
	back := time.Now()
	Expect(server.Start(ctx)).To(Succeed())
	p := enrolled(ctx, l, "shop", late.Name)
	now, err := get(ctx, l, &corev1.Pod{ObjectMeta: late.ObjectMeta})
	Expect(err).NotTo(HaveOccurred())
	Expect(now.Status.ContainerStatuses[0].State.Running.StartedAt.Time).To(BeTemporally(">=", back.Truncate(time.Second)), "it waited")
	Expect(l.Known(ctx, p)).To(Succeed())
	unbroken(flows)
	Expect(observe(ctx, l, p, url("http", cart, portHTTP))).To(expect.Tunnelled(), "it proceeds")
	Expect(l.Apply(ctx, next)).To(Succeed())
	Expect(observe(ctx, l, enrolled(ctx, l, "shop", next.Name), url("http", cart, portHTTP))).To(expect.Tunnelled())
}

// gated is a pod that its node's kubelet does not start before gate is called, which returns once kubelet does: a volume of the
// node's is missing until then. To kubelet it needs no API server any more.
func gated(ctx SpecContext, w *world.World, name string) (late *corev1.Pod, gate func()) {
	GinkgoHelper()
	files := openNode(ctx, w, name)
	path, kind := fmt.Sprintf("/run/ambientlab-gate-%d", time.Now().UnixNano()), corev1.HostPathFile
	late = pod(w, "late", func(p *corev1.Pod) {
		p.Spec.NodeName = name
		c := &p.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "gate", MountPath: "/gate"}) // others kubelet does not wait for
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "gate", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}})
	})
	Expect(w.Apply(ctx, late)).To(Succeed())
	Eventually(w.PodProblem).WithContext(ctx).WithArguments(lab.PodRef{Namespace: late.Namespace, Name: late.Name}).
		WithTimeout(world.Budget.Propagation).Should(ContainSubstring(path), "it waits for its volume")
	made, err := get(ctx, w, &corev1.Pod{ObjectMeta: late.ObjectMeta})
	Expect(err).NotTo(HaveOccurred())
	// Others had the name, and kubelet keeps their directories for a while.
	begins := func(entry string) bool { return strings.HasSuffix(entry, "_"+string(made.UID)) }
	const logs = "/var/log/pods" // where kubelet makes a directory before it asks for a pod's network
	Expect(slices.ContainsFunc(files.look(ctx, logs).Entries, begins)).To(BeFalse(), "control: it is not being started")
	return late, func() {
		files.write(ctx, path, "open")
		Eventually(func(ctx SpecContext) bool { return slices.ContainsFunc(files.look(ctx, logs).Entries, begins) }).
			WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "kubelet starts it")
	}
}

// unbroken: no call failed, and no connection was cut.
func unbroken(flows []*world.Flow) {
	GinkgoHelper()
	for _, f := range flows {
		res := f.Finish()
		AddReportEntry("calls of "+f.From, fmt.Sprintf("%d good, %d failed %v", res.OK, res.Failed, res.Errors))
		Expect(res.OK).To(BeNumerically(">", 50), "control: the calls of %s ran", f.From)
		Expect(res.Failed).To(BeZero(), "of %s: %v", f.From, res.Errors)
		for _, c := range res.Connections {
			Expect(c.Cut()).To(BeFalse(), "%+v", c)
		}
	}
}
