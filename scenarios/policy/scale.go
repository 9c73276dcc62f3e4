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
	// addedAtMost is processor time of the server's proxy, far above what the policies add, and far below what comparing with
	// each of them would on every connection of a busy node. How long a connection takes depends on what else runs, too: that is
	// printed, and measured where nothing else runs by `make microbench`.
	addedAtMost = 2 * time.Millisecond
)

var _ = Describe("many policies", func() {
	check := func(ctx SpecContext, many int) {
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		web := expect.Identity(l.Pod("shop/web")).Principal()
		Expect(observe(ctx, l, "shop/web", 8080)).To(expect.Tunnelled(), "control: what will be denied is allowed without policies")
		before, quick := connectCost(ctx, l)

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

		var after, slow time.Duration
		Eventually(func() time.Duration { // what taking so many policies in costs passes; what they cost a connection would stay
			after, slow = connectCost(ctx, l)
			return after - before
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeNumerically("<", addedAtMost), "%s without policies", before)
		AddReportEntry("a connection with a request", fmt.Sprintf("processor time of the server's proxy: %s without policies, %s with %d; median time: %s and %s",
			before, after, many, quick, slow))

		Expect(l.Delete(ctx, heeded)).To(Succeed())
		eventually(ctx, l, "shop/web", 8080, func(o *world.Observation) bool { return o.Call.OK }, "control: it was that one policy")
	}
	It("cost a connection little, and a deny among them is heeded", world.LongOwnLab, Label("P4-10"), func(ctx SpecContext) { check(ctx, aThousand) },
		SpecTimeout(world.Budget.Spec))
	It("cost a connection little when there are ten thousand of them", world.OwnLab, Label("P4-10", "slow"), func(ctx SpecContext) { check(ctx, manyPolicies) },
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

// connectCost is what connections cost that are opened one after the other for one request each: the server's proxy in processor
// time, and their median time.
func connectCost(ctx SpecContext, l *world.World) (cost, took time.Duration) {
	GinkgoHelper()
	const connections = 300
	cart := l.Pod("shop/cart")
	spent := func() float64 {
		s, err := l.Scrape(ctx, cart.Node)
		Expect(err).NotTo(HaveOccurred())
		return s.Sum("process_cpu_seconds_total", nil)
	}
	before := spent()
	res, err := l.Call(ctx, l.Pod("shop/web").PodRef, address(cart, 9000), workload.Options{Count: connections, Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred())
	Expect(res.Failed).To(BeZero(), "%v", res.Errors)
	used := spent() - before
	Expect(used).To(BeNumerically(">", 0), "control: the proxy was at work")
	return time.Duration(used / connections * float64(time.Second)), res.LatencyP50
}
