// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
)

const (
	strictMode     = securityapi.PeerAuthentication_MutualTLS_STRICT
	permissiveMode = securityapi.PeerAuthentication_MutualTLS_PERMISSIVE
	disableMode    = securityapi.PeerAuthentication_MutualTLS_DISABLE
)

type mode = securityapi.PeerAuthentication_MutualTLS_Mode

func peer(ns, name string, m mode, edit ...func(*securityv1.PeerAuthentication)) *securityv1.PeerAuthentication {
	p := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	p.SetGroupVersionKind(securityv1.SchemeGroupVersion.WithKind("PeerAuthentication"))
	p.Spec.Mtls = &securityapi.PeerAuthentication_MutualTLS{Mode: m}
	for _, e := range edit {
		e(p)
	}
	return p
}

func of(app string) func(*securityv1.PeerAuthentication) {
	return func(p *securityv1.PeerAuthentication) {
		p.Spec.Selector = &typeapi.WorkloadSelector{MatchLabels: map[string]string{"app": app}}
	}
}

func onPort(port uint32, m mode) func(*securityv1.PeerAuthentication) {
	return func(p *securityv1.PeerAuthentication) {
		p.Spec.PortLevelMtls = map[uint32]*securityapi.PeerAuthentication_MutualTLS{port: {Mode: m}}
	}
}

func madeAt(t time.Time) func(*securityv1.PeerAuthentication) {
	return func(p *securityv1.PeerAuthentication) { p.CreationTimestamp = metav1.NewTime(t) }
}

var _ = Describe("of several PeerAuthentications", func() {
	It("the narrowest counts, of two alike the older; a port's mode stands above its workload's", world.OwnLab, Label("P4-03"), func(ctx SpecContext) {
		l := start(ctx)
		plain := func(port uint16, ok func(*world.Observation) bool, why string) {
			GinkgoHelper()
			eventually(ctx, l, "plain/batch", port, ok, why)
		}
		apply(ctx, l, peer("istio-system", "default", strictMode))
		plain(8080, refused, "the mesh is strict")
		Expect(observe(ctx, l, "shop/web", 8080)).To(expect.Tunnelled(), "control: mutual TLS is what it asks for")

		apply(ctx, l, peer("shop", "default", permissiveMode, madeAt(time.Unix(1000, 0))))
		plain(8080, allowed, "the namespace is permissive")
		younger := peer("shop", "younger", strictMode, madeAt(time.Unix(2000, 0)))
		apply(ctx, l, younger)
		expectCondition(ctx, l, younger, And(HaveField("Reason", "Conflict"), HaveField("Message", ContainSubstring("shop/default"))))
		plain(8080, allowed, "the older one of the namespace is permissive")

		workload := peer("shop", "cart", permissiveMode, of("cart"), onPort(9000, strictMode))
		apply(ctx, l, workload)
		plain(9000, refused, "the port is strict")
		Expect(observe(ctx, l, "plain/batch", 8080)).To(expect.PlainInbound(), "its workload is not")
		Expect(observe(ctx, l, "shop/web", 9000)).To(expect.Tunnelled())
		apply(ctx, l, peer("shop", "cart", strictMode, of("cart"), onPort(9000, disableMode)))
		plain(8080, refused, "the workload is strict")
		plain(9000, allowed, "its port takes plain text")
		Expect(observe(ctx, l, "shop/web", 9000)).To(expect.Tunnelled(), "DISABLE does not switch HBONE off")
		expectCondition(ctx, l, workload, HaveField("Message", ContainSubstring("DISABLE acts as PERMISSIVE")))

		Expect(l.Delete(ctx, workload, peer("shop", "default", permissiveMode))).To(Succeed())
		plain(9000, refused, "of the namespace's the strict one is left")
		Expect(l.Delete(ctx, younger, peer("istio-system", "default", strictMode))).To(Succeed())
		plain(9000, allowed, "control: none is left")
	}, SpecTimeout(world.Budget.Spec))
})
