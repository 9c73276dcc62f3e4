// SPDX-License-Identifier: Apache-2.0

package dns

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var _ = Describe("DNS capture", func() {
	// ztunnel#1360: rules of one version with a proxy of another. Rules that lead to a port where nobody listens leave the pod
	// without DNS: that is what happens here too, said at once by the kernel. Neither daemon can know of it, since neither
	// tells the other what it does; the annotation, or the agent's default, takes the rules away.
	It("leaves a pod without names where the rules redirect and the proxy does not listen, until its annotation says otherwise", world.OwnLab, Label("DN-04"), func(ctx SpecContext) {
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: {"ISTIO_META_DNS_CAPTURE=false"}}})
		Expect(err).NotTo(HaveOccurred())
		const name = "cart.shop.svc.cluster.local"
		Expect(resolve(ctx, l, outside, name, options{}).Data("A")).To(HaveLen(1), "control: the cluster's DNS is there")
		for _, o := range []options{{}, {TCP: true}} {
			r := resolve(ctx, l, inside, name, o)
			Expect(r.Class).To(Equal(workload.ClassRefused), "%+v", r)
		}
		annotate(ctx, l, "false")
		for _, o := range []options{{}, {TCP: true}} {
			eventually(ctx, l, name, o, known)
		}
		annotate(ctx, l, "true")
		eventually(ctx, l, name, options{}, func(r workload.Resolution) bool { return r.Class == workload.ClassRefused })
	}, SpecTimeout(world.Budget.Spec))

	It("is off for a pod that says so, whatever the agent's default, and on for one that says so", world.OwnLab, Label("DN-04"), func(ctx SpecContext) {
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonCNIAgent: {"AMBIENT_DNS_CAPTURE=false"}}})
		Expect(err).NotTo(HaveOccurred())
		// The short name tells who answers: the cluster's DNS knows full ones only.
		off := func(r workload.Resolution) bool { return r.Rcode == "NXDOMAIN" }
		Expect(off(resolve(ctx, l, inside, "cart", options{}))).To(BeTrue(), "the agent's default is off")
		Expect(resolve(ctx, l, inside, "cart", options{Search: true}).Data("A")).To(HaveLen(1), "control: the cluster's DNS answers")
		annotate(ctx, l, "true")
		eventually(ctx, l, "cart", options{}, known)
		annotate(ctx, l, "false")
		eventually(ctx, l, "cart", options{}, off)
	}, SpecTimeout(world.Budget.Spec))
})

func annotate(ctx SpecContext, l *world.World, value string) {
	GinkgoHelper()
	pod := l.PodObject(inside)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[mesh.AnnotationDNSCapture] = value
	Expect(l.Apply(ctx, pod)).To(Succeed())
}
