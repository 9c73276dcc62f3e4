// SPDX-License-Identifier: Apache-2.0

package security

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// certDir is where an attacker keeps its certificate.
const certDir = "/tmp/cert"

// attacker is a pod of service account web that has its own certificate in certDir: what somebody has who took over an
// application. It is outside the mesh, so that no proxy of its own is in the way, unless meshed.
func attacker(ctx SpecContext, l *world.World, name string, edit ...func(*corev1.Pod)) lab.PodInfo {
	GinkgoHelper()
	p := l.ClonePod("shop/web", name)
	p.Labels = map[string]string{"app": name, mesh.LabelDataplaneMode: mesh.ModeNone}
	world.MeshCredentials(p)
	for _, e := range edit {
		e(p)
	}
	Expect(l.Apply(ctx, p)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(l.Delete(ctx, p)).To(Succeed()) })
	pod, err := l.WaitPod(ctx, lab.PodRef{Namespace: p.Namespace, Name: name}, func(p lab.PodInfo) bool { return p.Ready })
	Expect(err).NotTo(HaveOccurred())
	out, err := l.Output(ctx, pod.PodRef, "workload", "cert", "--out", certDir)
	Expect(err).NotTo(HaveOccurred())
	Expect(string(out)).To(Equal(expect.Identity(pod).String() + "\n"))
	return pod
}

var _ = Describe("an application with a token for the mesh's authority", func() {
	It("gets a certificate of its own identity, and of no other", Label("SE-03"), func(ctx SpecContext) {
		pod := attacker(ctx, w, "thief")
		other := expect.Identity(w.Pod("shop/stock"))
		_, err := w.Output(ctx, pod.PodRef, "workload", "cert", "--out", "/tmp/other", "--identity", other.String())
		Expect(err).To(MatchError(And(ContainSubstring("PermissionDenied"), ContainSubstring("its own identity only"))))
		_, err = w.Output(ctx, w.Pod("shop/web").PodRef, "workload", "cert", "--out", certDir)
		Expect(err).To(MatchError(ContainSubstring("istio-token")), "control: a pod that asked for no token has none")
	}, SpecTimeout(world.Budget.Spec))
})
