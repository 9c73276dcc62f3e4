// SPDX-License-Identifier: Apache-2.0

package security

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
	"github.com/ambientlab/ambientlab/topologies/workload/forge"
)

// rights are what a pod may have been given.
type rights struct {
	name      string
	add, drop []corev1.Capability
	raw       bool // NET_RAW
	admin     bool // NET_ADMIN
}

// escapee is a pod of the mesh with these rights.
func escapee(ctx SpecContext, l *world.World, r rights) lab.PodInfo {
	GinkgoHelper()
	p := l.ClonePod("shop/web", r.name)
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: r.add, Drop: r.drop}}
	pod, err := l.Join(ctx, p)
	Expect(err).NotTo(HaveOccurred())
	return pod
}

var kinds = []rights{
	{name: "default", raw: true}, // Kubernetes' default
	{name: "no-net-raw", drop: []corev1.Capability{"NET_RAW"}},
	{name: "net-admin", add: []corev1.Capability{"NET_ADMIN"}, raw: true, admin: true},
}

// marks reports whether a pod with these rights may mark its packets.
func (r rights) marks() bool { return r.admin || r.raw && kernel() >= kernelVersion(5, 17) }

var _ = Describe("an application that tries to get past its proxy", func() {
	It("gets no identity by it, whatever its rights", world.OwnLab, Label("SE-02"), func(ctx SpecContext) {
		l := borrowed(ctx)
		l.Needs(lab.CapPodCaps)
		cart := l.Pod("shop/cart")
		call := func(pod lab.PodInfo, o workload.Options) *world.Observation {
			GinkgoHelper()
			if o.Timeout == 0 {
				o.Timeout = world.Budget.Call
			}
			obs, err := l.Observe(ctx, pod, url(cart), o)
			Expect(err).NotTo(HaveOccurred(), "%v", obs)
			return obs
		}
		pods := map[string]lab.PodInfo{}
		for _, r := range kinds {
			By("trying with rights: " + r.name)
			pod := escapee(ctx, l, r)
			pods[r.name] = pod
			Expect(call(pod, workload.Options{})).To(expect.Tunnelled(), "control: an honest call")
			if marked := call(pod, workload.Options{Mark: mesh.MarkProxy}); r.marks() {
				Expect(marked).To(expect.PlainInbound())
				world.Finding("a pod with rights %q (%s) may mark its packets %#x and so leave past its ztunnel: the destination sees plain text and no identity", r.name, why(r), mesh.MarkProxy)
			} else {
				Expect(marked.Call.Class).To(Equal(workload.ClassPermission), "%s", marked)
			}
			notThisWay(call, pod)
			forged(ctx, l, pod, r)
		}

		By("control: where mutual TLS is required, only the honest call arrives")
		Expect(l.Apply(ctx, strict("shop"))).To(Succeed())
		nobody := func(o *world.Observation) bool {
			return !o.Call.OK && o.Inbound != nil && o.Inbound.Record.Flags == telemetry.FlagDeny && o.Inbound.Record.Src.Identity.IsZero()
		}
		for _, r := range kinds {
			if r.marks() {
				Eventually(func() bool { return nobody(call(pods[r.name], workload.Options{Mark: mesh.MarkProxy})) }).
					WithTimeout(world.Budget.Propagation).Should(BeTrue())
			}
			Expect(call(pods[r.name], workload.Options{})).To(expect.Tunnelled())
		}
	}, SpecTimeout(world.Budget.LongSpec))
})

// notThisWay tries what no right may make possible: the mark of answers, which sends packets to the pod itself; and the
// address of kubelet's probes, which rules let pass.
func notThisWay(call func(lab.PodInfo, workload.Options) *world.Observation, pod lab.PodInfo) {
	GinkgoHelper()
	for _, o := range []workload.Options{
		{Mark: mesh.MarkConn}, {Mark: mesh.MarkConn, Bind: pod.Addr(false)},
		{Bind: mesh.ProbeSourceV4}, {Bind: mesh.ProbeSourceV4, Mark: mesh.MarkProxy},
	} {
		o.Timeout = 100 * time.Millisecond // an answer cannot find its way
		obs := call(pod, o)
		Expect(obs.Call.OK).To(BeFalse(), "mark %#x from %s\n%s", o.Mark, o.Bind, obs)
		Expect(obs.Metrics.Sum(world.Opened, nil)).To(BeZero(), "mark %#x from %s\n%s", o.Mark, o.Bind, obs)
	}
}

// forged sends packets that the pod made itself.
func forged(ctx SpecContext, l *world.World, pod lab.PodInfo, r rights) {
	GinkgoHelper()
	to := netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), 8080)
	for _, s := range []forge.SYN{
		{Via: forge.ViaPacket, To: to, Wait: time.Second}, {Via: forge.ViaPacket, To: to, Source: mesh.ProbeSourceV4, Wait: 100 * time.Millisecond},
	} {
		out, err := l.Output(ctx, pod.PodRef, append([]string{"workload", "syn"}, s.Args()...)...)
		Expect(err).NotTo(HaveOccurred())
		var reply forge.Reply
		Expect(json.Unmarshal(out, &reply)).To(Succeed())
		Expect(reply.Sent).To(Equal(r.raw), "%+v", reply)
		switch {
		case !r.raw:
			Expect(reply.Error).To(ContainSubstring("not permitted"))
		case s.Source.IsValid():
			Expect(reply.Answer).To(Equal(forge.AnswerNone), "from the address of probes: %+v", reply)
		case reply.Answer == forge.AnswerSYNACK:
			world.Finding("a pod with rights %q may send frames of its own making (AF_PACKET), which no rule of its namespace sees: what answers sees plain text and no identity", r.name)
		}
	}
}

func why(r rights) string {
	if r.admin {
		return "NET_ADMIN"
	}
	return "NET_RAW, since Linux 5.17"
}

func strict(namespace string) *securityv1.PeerAuthentication {
	p := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "strict"}}
	p.Spec.Mtls = &securityapi.PeerAuthentication_MutualTLS{Mode: securityapi.PeerAuthentication_MutualTLS_STRICT}
	return p
}

func kernelVersion(major, minor int) int { return major<<16 | minor }

// kernel is the version of the host's, which a netns lab shares.
func kernel() int {
	GinkgoHelper()
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	Expect(err).NotTo(HaveOccurred())
	var major, minor int
	_, err = fmt.Sscanf(string(text), "%d.%d", &major, &minor)
	Expect(err).NotTo(HaveOccurred())
	return kernelVersion(major, minor)
}
