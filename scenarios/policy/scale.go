// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	securityapi "istio.io/api/security/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

const (
	// aThousand is what a lab takes in a second; manyPolicies are what the mesh should bear.
	aThousand    = 1_000
	manyPolicies = 10_000
	// addedAtMost is far above what the policies add, and far below what comparing with each of them would on every
	// connection of a busy node. The figure itself is printed, and measured where nothing else runs by `make microbench`.
	addedAtMost = 5 * time.Millisecond
)

var _ = Describe("many policies", func() {
	check := func(ctx SpecContext, many int) {
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		web := expect.Identity(l.Pod("shop/web")).Principal()
		Expect(observe(ctx, l, "shop/web", 8080)).To(expect.Tunnelled(), "control: what will be denied is allowed without policies")
		before := connectTime(ctx, l)

		objs := make([]runtime.Object, many)
		for i := range objs {
			principal := fmt.Sprintf("cluster.local/ns/team-%d/sa/app-%d", i%100, i)
			objs[i] = denyPrincipal(fmt.Sprintf("deny-%05d", i), principal, "9000", "8080")
		}
		heeded := denyPrincipal("deny-00500", web, "8080")
		objs[500] = heeded
		apply(ctx, l, objs...)
		eventuallyDenied(ctx, l, "shop/web")
		Expect(observe(ctx, l, "shop/web", 8080).Inbound.Record.Policy).To(Equal("shop/deny-00500"))
		Expect(observe(ctx, l, "shop/web", 9000)).To(expect.Tunnelled(), "the others are about somebody else")

		var after time.Duration
		Eventually(func() time.Duration { // what else the machine does passes; what the policies cost would stay
			after = connectTime(ctx, l)
			return after - before
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeNumerically("<", addedAtMost), "%s without policies", before)
		AddReportEntry("median time of a connection with a request", fmt.Sprintf("%s without policies, %s with %d", before, after, many))

		Expect(l.Delete(ctx, heeded)).To(Succeed())
		eventually(ctx, l, "shop/web", 8080, func(o *world.Observation) bool { return o.Call.OK }, "control: it was that one policy")
	}
	It("cost a connection little, and a deny among them is heeded", Label("P4-10"), func(ctx SpecContext) { check(ctx, aThousand) },
		SpecTimeout(world.Budget.Spec))
	It("cost a connection little when there are ten thousand of them", Label("P4-10", "slow"), func(ctx SpecContext) { check(ctx, manyPolicies) },
		SpecTimeout(world.Budget.LongSpec))
})

func denyPrincipal(name, principal string, ports ...string) runtime.Object {
	return authorization("shop", name, func(p *securityapi.AuthorizationPolicy) {
		p.Action = securityapi.AuthorizationPolicy_DENY
		p.Rules = []*securityapi.Rule{{
			From: []*securityapi.Rule_From{{Source: &securityapi.Source{Principals: []string{principal}}}},
			To:   []*securityapi.Rule_To{{Operation: &securityapi.Operation{Ports: ports}}},
		}}
	})
}

// connectTime is the median of connections that are opened one after the other for one request each.
func connectTime(ctx SpecContext, l *world.World) time.Duration {
	GinkgoHelper()
	res, err := l.Call(ctx, l.Pod("shop/web").PodRef, address(l.Pod("shop/cart"), 9000), workload.Options{Count: 300})
	Expect(err).NotTo(HaveOccurred())
	Expect(res.Failed).To(BeZero(), "%v", res.Errors)
	return res.LatencyP50
}
