// SPDX-License-Identifier: Apache-2.0

package security

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// attacker is a pod of service account web with a certificate of its own.
func attacker(ctx SpecContext, l *world.World, name string) lab.PodInfo {
	GinkgoHelper()
	pod, err := l.Attacker(ctx, "shop/web", name)
	Expect(err).NotTo(HaveOccurred())
	return pod
}

var _ = Describe("an application with a token for the mesh's authority", func() {
	It("gets a certificate of its own identity, and of no other", Label("SE-03"), func(ctx SpecContext) {
		pod := attacker(ctx, w, "thief")
		other := expect.Identity(w.Pod("shop/stock"))
		_, err := w.Output(ctx, pod.PodRef, "workload", "cert", "--out", "/tmp/other", "--identity", other.String())
		Expect(err).To(MatchError(And(ContainSubstring("PermissionDenied"), ContainSubstring("its own identity only"))))
		_, err = w.Output(ctx, w.Pod("shop/web").PodRef, "workload", "cert", "--out", "/tmp/cert")
		Expect(err).To(MatchError(ContainSubstring("istio-token")), "control: a pod that asked for no token has none")
	}, SpecTimeout(world.Budget.Spec))
})
