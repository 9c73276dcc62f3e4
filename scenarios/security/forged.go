// SPDX-License-Identifier: Apache-2.0

package security

import (
	"fmt"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload/forge"
)

// only allows one identity to call what is in shop.
func only(principal string) *securityv1.AuthorizationPolicy {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "only", Namespace: "shop"}}
	p.Spec.Rules = []*securityapi.Rule{{From: []*securityapi.Rule_From{{Source: &securityapi.Source{Principals: []string{principal}}}}}}
	return p
}

var _ = Describe("forged headers", func() {
	It("change neither who is authorised nor whose identity is counted", world.OwnLab, Label("SE-04"), func(ctx SpecContext) {
		l := borrowed(ctx)
		mallory := attacker(ctx, l, "mallory")
		cart := l.Pod("shop/cart")
		authority := fmt.Sprintf("%s:8080", cart.Addr(false))
		const forgedTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
		claims := []forge.Field{
			{Name: telemetry.HeaderBaggage, Value: "k8s.cluster.name=other,k8s.namespace.name=bank,k8s.deployment.name=teller,service.name=teller,service.version=v9"},
			{Name: telemetry.HeaderForwarded, Value: fmt.Sprintf(`for="%s:4711";host=teller.bank.svc.cluster.local`, cart.Addr(false))},
			{Name: telemetry.HeaderTraceparent, Value: "00-" + forgedTrace + "-00f067aa0ba902b7-01"},
		}
		nonsense := []forge.Field{
			{Name: "x-forwarded-network", Value: "elsewhere"}, {Name: telemetry.HeaderBaggage, Value: "k8s.deployment.name=%ff%fe,service.name=%c3%28"},
			{Name: telemetry.HeaderForwarded, Value: "for=;;host"},
		}
		elsewhere := append([]forge.Field{{Name: "x-forwarded-network", Value: "elsewhere"}}, claims...)

		By("refusing whom the policy does not name, whatever it says of itself")
		policy := only("cluster.local/ns/bank/sa/teller")
		Expect(l.Apply(ctx, policy)).To(Succeed())
		began := time.Now()
		Eventually(func() int { return connect(ctx, l, mallory, cart.Addr(false), authority).Status }).
			WithTimeout(world.Budget.Propagation).Should(Equal(http.StatusUnauthorized))
		for _, fields := range [][]forge.Field{claims, elsewhere} {
			Expect(connect(ctx, l, mallory, cart.Addr(false), authority, fields...).Status).To(Equal(http.StatusUnauthorized))
		}
		_, err := l.WaitEntry(ctx, cart.Node, began, func(e telemetry.Entry) bool {
			return e.Record.Flags == telemetry.FlagDeny && e.Record.TraceID == forgedTrace && e.Record.Src.Identity == expect.Identity(mallory)
		})
		Expect(err).NotTo(HaveOccurred())

		By("control: allowing the identity that its certificate proves")
		Expect(l.Apply(ctx, only(expect.Identity(mallory).Principal()))).To(Succeed())
		Eventually(func() int { return connect(ctx, l, mallory, cart.Addr(false), authority, claims...).Status }).
			WithTimeout(world.Budget.Propagation).Should(Equal(http.StatusOK))

		By("counting it under that identity and namespace; the names beside it are believed only of a gateway's client")
		for workload, fields := range map[string][]forge.Field{"mallory": claims, "teller": elsewhere, "unknown": nonsense} {
			counted(ctx, l, mallory, cart, workload, func() {
				Expect(connect(ctx, l, mallory, cart.Addr(false), authority, fields...).Status).To(Equal(http.StatusOK))
			})
		}
	}, SpecTimeout(world.Budget.LongSpec))
})

// counted expects that call adds one connection, of this source workload but of the caller's own identity.
func counted(ctx SpecContext, l *world.World, from, to lab.PodInfo, workload string, call func()) {
	GinkgoHelper()
	Expect(l.Settle(ctx)).To(Succeed())
	before, err := l.Scrape(ctx, to.Node)
	Expect(err).NotTo(HaveOccurred())
	call()
	Eventually(func(g Gomega, ctx SpecContext) {
		after, err := l.Scrape(ctx, to.Node)
		g.Expect(err).NotTo(HaveOccurred())
		grown := after.Since(before, world.Closed)
		g.Expect(grown.Sum(world.Closed, nil)).To(Equal(1.0))
		g.Expect(grown.Sum(world.Closed, map[string]string{
			"source_principal": expect.Identity(from).String(), "source_workload_namespace": from.Namespace, "source_workload": workload,
			"destination_service_name": "cart", "destination_principal": expect.Identity(to).String(),
		})).To(Equal(1.0), "%v", grown)
	}).WithContext(ctx).WithTimeout(world.Budget.Evidence).Should(Succeed())
}
