// SPDX-License-Identifier: Apache-2.0

// Package policy holds the scenarios about who may talk to whom: AuthorizationPolicy and PeerAuthentication objects, as
// ztunnel enforces them at the destination.
package policy

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var _ = Describe("policy", func() {
	It("allows the client, port and identity that it names, and nothing else", world.OwnLab, Label("P4-07", "P4-08"), func(ctx SpecContext) {
		l := start(ctx)
		Expect(observe(ctx, l, "plain/batch", 8080)).To(expect.PlainInbound(), "control: without a policy anybody may")
		apply(ctx, l, authorization("shop", "only-web", func(p *securityapi.AuthorizationPolicy) {
			p.Selector = &typeapi.WorkloadSelector{MatchLabels: map[string]string{"app": "cart"}}
			p.Rules = []*securityapi.Rule{{
				From: []*securityapi.Rule_From{{Source: &securityapi.Source{Principals: []string{expect.Identity(l.Pod("shop/web")).Principal()}}}},
				To:   []*securityapi.Rule_To{{Operation: &securityapi.Operation{Ports: []string{"8080"}}}},
			}}
		}))
		eventuallyDenied(ctx, l, "plain/batch")
		Expect(observe(ctx, l, "shop/web", 8080)).To(expect.Tunnelled())
		expectDenied(observe(ctx, l, "shop/web", 9000), "the port is the application's, not 15008")
		expectDenied(observe(ctx, l, "plain/batch", 8080), "plain text has no principal")
	}, SpecTimeout(world.Budget.Spec))

	It("covers a namespace or the mesh by its place, allows nothing without rules, and only watches in a dry run", world.OwnLab, Label("P4-02"), func(ctx SpecContext) {
		l := start(ctx)
		dry := authorization("istio-system", "dry", denyAll)
		dry.Annotations = map[string]string{"istio.io/dry-run": "true"}
		nothing := authorization("shop", "allow-nothing", func(*securityapi.AuthorizationPolicy) {})
		apply(ctx, l, dry, nothing)
		eventuallyDenied(ctx, l, "shop/web")
		Expect(observe(ctx, l, "shop/web", 8080).Inbound.Error).To(ContainSubstring("allow"), "by the empty ALLOW, not by the dry run")

		Expect(l.Delete(ctx, nothing)).To(Succeed())
		eventually(ctx, l, "shop/web", 8080, func(o *world.Observation) bool { return o.Call.OK }, "a dry run denies nothing")
		Expect(observe(ctx, l, "shop/web", 8080)).To(expect.Tunnelled())

		apply(ctx, l, authorization("istio-system", "mesh-wide", denyAll))
		eventuallyDenied(ctx, l, "shop/web")
		Expect(observe(ctx, l, "shop/web", 8080).Inbound.Record.Policy).To(Equal("istio-system/mesh-wide"))
	}, SpecTimeout(world.Budget.Spec))

	It("requires mutual TLS where PeerAuthentication says STRICT, but for the ports that it exempts", world.OwnLab, Label("P4-03"), func(ctx SpecContext) {
		l := start(ctx)
		Expect(observe(ctx, l, "plain/batch", 8080)).To(expect.PlainInbound(), "control: permissive until told otherwise")
		apply(ctx, l, peer("shop", "strict", strictMode, of("cart"), onPort(9000, permissiveMode)))
		eventuallyDenied(ctx, l, "plain/batch")
		Expect(observe(ctx, l, "shop/web", 8080)).To(expect.Tunnelled())
		Expect(observe(ctx, l, "plain/batch", 9000)).To(expect.PlainInbound(), "the exempted port")
	}, SpecTimeout(world.Budget.Spec))

	It("closes live connections that it comes to deny, within a second", world.OwnLab, Label("P4-06", "OB-03"), func(ctx SpecContext) {
		l := start(ctx)
		web, cart := l.Pod("shop/web"), l.Pod("shop/cart")
		ended := make(chan workload.Result, 1)
		go func() {
			defer GinkgoRecover()
			res, err := l.Call(ctx, web.PodRef, address(cart, 9000), workload.Options{Silent: world.Budget.Spec, Timeout: 2 * world.Budget.Spec})
			Expect(err).NotTo(HaveOccurred())
			ended <- res
		}()
		Eventually(l.OpenTunnels).WithContext(ctx).WithArguments(cart.Node).WithTimeout(world.Budget.Evidence).Should(BeNumerically(">", 0))
		Consistently(ended).WithTimeout(200*time.Millisecond).ShouldNot(Receive(), "control: it lasts until the policy changes")
		began := time.Now()
		apply(ctx, l, authorization("shop", "deny-all", denyAll))
		known := time.Now()
		var res workload.Result
		Eventually(ended).WithTimeout(world.Budget.Propagation).Should(Receive(&res))
		Expect(res.OK).To(BeZero())
		e, err := l.WaitEntry(ctx, cart.Node, began, func(e telemetry.Entry) bool {
			return e.Record.Flags == telemetry.FlagDeny && e.Record.Policy == "shop/deny-all" && strings.Contains(e.Error, "AuthorizationPolicyLateRejection")
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(e.Record.Time).To(BeTemporally("<", known.Add(time.Second)), "since the proxy knows the policy")
	}, SpecTimeout(world.Budget.Spec))
})

func start(ctx SpecContext) *world.World {
	GinkgoHelper()
	l, err := world.Borrow(ctx, "two-nodes")
	Expect(err).NotTo(HaveOccurred())
	return l
}

func authorization(ns, name string, fill func(*securityapi.AuthorizationPolicy)) *securityv1.AuthorizationPolicy {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}}
	p.SetGroupVersionKind(securityv1.SchemeGroupVersion.WithKind("AuthorizationPolicy"))
	fill(&p.Spec)
	return p
}

func denyAll(p *securityapi.AuthorizationPolicy) {
	p.Action = securityapi.AuthorizationPolicy_DENY
	p.Rules = []*securityapi.Rule{{To: []*securityapi.Rule_To{{Operation: &securityapi.Operation{NotPorts: []string{"1"}}}}}}
}

// apply makes objects, which are in force from then on.
func apply(ctx SpecContext, l *world.World, objs ...runtime.Object) {
	GinkgoHelper()
	Expect(l.Establish(ctx, objs...)).To(Succeed())
}

func address(p lab.PodInfo, port uint16) string {
	scheme := map[uint16]string{8080: "http", 9000: "tcp"}[port]
	return fmt.Sprintf("%s://%s", scheme, netip.AddrPortFrom(p.Addr(false), port))
}

func observe(ctx context.Context, l *world.World, from string, port uint16) *world.Observation {
	GinkgoHelper()
	obs, err := l.Observe(ctx, l.Pod(from), address(l.Pod("shop/cart"), port), workload.Options{Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred(), "%v", obs)
	return obs
}

// eventually waits, within the budget for propagation, until a call is as ok wants it.
func eventually(ctx SpecContext, l *world.World, from string, port uint16, ok func(*world.Observation) bool, why string) {
	GinkgoHelper()
	Eventually(func(ctx SpecContext) bool { return ok(observe(ctx, l, from, port)) }).
		WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), why)
}

func eventuallyDenied(ctx SpecContext, l *world.World, from string) {
	const port = 8080
	GinkgoHelper()
	eventually(ctx, l, from, port, func(o *world.Observation) bool { return !o.Call.OK }, from+" is still let in")
	expectDenied(observe(ctx, l, from, port), from)
}

func expectDenied(o *world.Observation, why string) {
	GinkgoHelper()
	Expect(o.Call.OK).To(BeFalse(), "%s\n%s", why, o)
	Expect(o.Inbound).NotTo(BeNil(), "%s\n%s", why, o)
	Expect(o.Inbound.Record.Flags).To(Equal(telemetry.FlagDeny), "%s\n%s", why, o)
	Expect(o.Inbound.Level).To(Equal("error"))
}
