// SPDX-License-Identifier: Apache-2.0

package policy

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"
	securityapi "istio.io/api/security/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
)

// accepted is the condition that says what ztunnel makes of a policy.
const accepted = "ZtunnelAccepted"

var _ = Describe("a policy with rules that only a waypoint could judge", func() {
	It("loses those rules if it allows, keeps what L4 can judge if it denies, and says so", world.OwnLab, Label("P4-05"), func(ctx SpecContext) {
		l := start(ctx)
		get := &securityapi.Operation{Methods: []string{"GET"}}
		port := func(p string) *securityapi.Operation { return &securityapi.Operation{Ports: []string{p}} }

		By("dropping the rule from an ALLOW: what it alone would let in is refused (istio/istio#44554)")
		allow := authorization("shop", "allow", func(p *securityapi.AuthorizationPolicy) {
			p.Rules = []*securityapi.Rule{{To: []*securityapi.Rule_To{{Operation: get}}}, {To: []*securityapi.Rule_To{{Operation: port("9000")}}}}
		})
		apply(ctx, l, allow)
		eventuallyDenied(ctx, l, "shop/web")
		Expect(observe(ctx, l, "shop/web", 9000)).To(expect.Tunnelled(), "control: the other rule stands")
		expectCondition(ctx, l, allow, And(HaveField("Status", metav1.ConditionTrue), HaveField("Reason", "UnsupportedValue"), HaveField("Message",
			And(ContainSubstring("methods"), ContainSubstring("spec.rules[0] is left out"), ContainSubstring("stricter")))))

		By("keeping the port of a DENY and losing the method: it denies more than was written")
		deny := authorization("shop", "deny", func(p *securityapi.AuthorizationPolicy) {
			p.Action = securityapi.AuthorizationPolicy_DENY
			p.Rules = []*securityapi.Rule{{To: []*securityapi.Rule_To{{Operation: &securityapi.Operation{Methods: []string{"DELETE"}, Ports: []string{"8080"}}}}}}
		})
		Expect(l.Delete(ctx, allow)).To(Succeed())
		eventually(ctx, l, "shop/web", 8080, allowed, "without a policy everybody may")
		apply(ctx, l, deny)
		eventuallyDenied(ctx, l, "shop/web")
		Expect(observe(ctx, l, "shop/web", 9000)).To(expect.Tunnelled(), "control: another port")
		expectCondition(ctx, l, deny, HaveField("Message", And(ContainSubstring("methods"), ContainSubstring("denies more"))))

		By("denying nothing where a DENY has nothing else, and not calling that stricter (istio/istio#61126)")
		inert := authorization("shop", "inert", func(p *securityapi.AuthorizationPolicy) {
			p.Action = securityapi.AuthorizationPolicy_DENY
			p.Rules = []*securityapi.Rule{{To: []*securityapi.Rule_To{{Operation: get}}}}
		})
		Expect(l.Delete(ctx, deny)).To(Succeed())
		apply(ctx, l, inert)
		expectCondition(ctx, l, inert, HaveField("Message",
			And(ContainSubstring("methods"), ContainSubstring("denies nothing"), Not(ContainSubstring("stricter")))))
		eventually(ctx, l, "shop/web", 8080, allowed, "the deleted DENY is gone")
		Expect(observe(ctx, l, "shop/web", 8080)).To(expect.Tunnelled())

		By("control: a policy that L4 can judge is accepted as written")
		plain := authorization("shop", "plain", func(p *securityapi.AuthorizationPolicy) {
			p.Rules = []*securityapi.Rule{{To: []*securityapi.Rule_To{{Operation: port("8080")}}}}
		})
		apply(ctx, l, plain)
		expectCondition(ctx, l, plain, And(HaveField("Reason", "Accepted"), HaveField("Message", ContainSubstring("as written"))))
		eventually(ctx, l, "shop/web", 9000, refused, "the port is not among those allowed")
	}, SpecTimeout(world.Budget.Spec))
})

func allowed(o *world.Observation) bool { return o.Call.OK }
func refused(o *world.Observation) bool { return !o.Call.OK }

// expectCondition waits until an object says what it should of itself: an older word may stand there for a while.
func expectCondition(ctx SpecContext, l *world.World, o runtime.Object, want types.GomegaMatcher) {
	GinkgoHelper()
	Eventually(l.Condition).WithContext(ctx).WithArguments(o, accepted).WithTimeout(world.Budget.Propagation).Should(want)
}
