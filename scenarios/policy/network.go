// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

const (
	connectTimeout = 600 * time.Millisecond // of ztunnels: a connection that a NetworkPolicy drops has no other end
	blockedFor     = 150 * time.Millisecond // a plain client's patience
)

// clients is how many pods web is: one that has called before has a tunnel, which a new policy leaves alone.
const clients = 4

// appPort is what a policy's author knows of; otherPort is another of the same application.
const (
	appPort   = 8080
	otherPort = 9000
)

// The first thing that users stumble over (istio/ztunnel#1229, istio/istio#52742, #51034), and its other side: who allows 15008
// allows every port of the pod (istio/istio#56659). Upstream's own test of it is skipped (#49301).
var _ = Describe("NetworkPolicy and the mesh's port", func() {
	It("blocks those in the mesh where it names the application's port alone, and opens every port where it names 15008", world.OwnLab, Label("P4-09"), func(ctx SpecContext) {
		began := time.Now()
		l := underNetworkPolicy(ctx)
		for _, six := range families(l) {
			Expect(dial(ctx, l, "shop/web-0", "shop/cart", appPort, six)).To(expect.Tunnelled(), "control: without a policy")
			Expect(dial(ctx, l, "plain/batch", "shop/cart", otherPort, six)).To(expect.PlainInbound(), "control: without a policy")
		}
		overAnOldTunnel(ctx, l, "shop/web-0", func() {
			enforce(ctx, l, ingress("shop", "cart", appPort), ingress("plain", "ledger", appPort))
		})
		for _, six := range families(l) {
			noTunnel(dial(ctx, l, "shop/web-1", "shop/cart", appPort, six))
			Expect(dial(ctx, l, "plain/batch", "plain/ledger", appPort, six)).To(expect.Direct(), "outside the mesh the policy does what it says")
			Expect(dial(ctx, l, "plain/batch", "shop/cart", appPort, six)).To(expect.PlainInbound(), "a caller outside the mesh sees nothing wrong")
		}
		Expect(refusals(ctx, l, "shop/cart")).To(ContainElement(And(HavePrefix("ingress/shop/cart: NetworkPolicy dropped"), HaveSuffix("not allowed by shop/cart"))))

		By("taking the same pods out of the mesh")
		ns := l.NamespaceObject("shop")
		delete(ns.Labels, mesh.LabelDataplaneMode)
		enrolment(ctx, l, ns, false)
		Expect(dial(ctx, l, "shop/web-1", "shop/cart", appPort, false)).To(expect.Direct())
		enrolment(ctx, l, l.NamespaceObject("shop"), true)
		noTunnel(dial(ctx, l, "shop/web-1", "shop/cart", appPort, false))

		mendedBy15008(ctx, l, "shop/web-1", "shop/web-2")
		theWayOut(ctx, l, "shop/web-3", began)
	}, SpecTimeout(world.Budget.Spec))
})

// mendedBy15008 shows that the port opens all others to those it lets in, and to nobody else.
func mendedBy15008(ctx SpecContext, l *world.World, first, second string) {
	GinkgoHelper()
	By("allowing 15008 too")
	enforce(ctx, l, ingress("shop", "cart", appPort, mesh.PortHBONE))
	for _, six := range families(l) {
		Expect(dial(ctx, l, first, "shop/cart", appPort, six)).To(expect.Tunnelled())
		Expect(dial(ctx, l, first, "shop/cart", otherPort, six)).To(expect.Tunnelled(), "the policy does not see which port is meant: that is for an AuthorizationPolicy")
		dropped(ctx, l, "plain/batch", "shop/cart", otherPort, six)
	}
	By("naming the callers")
	only := ingress("shop", "cart", appPort, mesh.PortHBONE)
	only.Spec.Ingress[0].From = []networkingv1.NetworkPolicyPeer{{PodSelector: app("web")}}
	enforce(ctx, l, only)
	for _, six := range families(l) {
		dropped(ctx, l, "plain/batch", "shop/cart", appPort, six)
		Expect(dial(ctx, l, second, "shop/cart", appPort, six)).To(expect.Tunnelled())
	}
	Expect(l.Delete(ctx, only)).To(Succeed())
}

// theWayOut shows the same of a policy of what leaves, and that one with a mistake takes nothing from it.
func theWayOut(ctx SpecContext, l *world.World, from string, began time.Time) {
	GinkgoHelper()
	By("judging what leaves")
	enforce(ctx, l, egress("shop", "web", appPort))
	for _, six := range families(l) {
		noTunnel(dial(ctx, l, from, "shop/cart", appPort, six))
	}
	Expect(refusals(ctx, l, from)).To(ContainElement(HavePrefix("egress/" + from + ": NetworkPolicy dropped")))
	toldByTheTimeline(ctx, l, began)
	mended := egress("shop", "web", appPort, mesh.PortHBONE)
	enforce(ctx, l, mended)
	for _, six := range families(l) {
		Expect(dial(ctx, l, from, "shop/cart", appPort, six)).To(expect.Tunnelled())
	}
	By("refusing a policy with a mistake: the last good one stays")
	bad := egress("shop", "web", appPort)
	bad.Spec.Egress[0].To = []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/33"}}}
	Expect(l.Apply(ctx, bad)).To(MatchError(And(ContainSubstring("NetworkPolicy shop/web: "),
		ContainSubstring("spec.egress[0].to[0].ipBlock.cidr: "), ContainSubstring(`"10.0.0.0/33"`)))) // who refuses it words it
	enforced(ctx, l, mended)
}

// toldByTheTimeline: a failure shows the change, the packet that got no answer, and what the proxy made of it.
func toldByTheTimeline(ctx SpecContext, l *world.World, began time.Time) {
	GinkgoHelper()
	t, err := l.Timeline(ctx, began, time.Now())
	Expect(err).NotTo(HaveOccurred())
	var text strings.Builder
	Expect(t.Draw(&text, 0)).To(Succeed())
	GinkgoWriter.Print(text.String())
	syn := fmt.Sprintf(" → %s SYN", netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), mesh.PortHBONE))
	for _, part := range []string{"apply NetworkPolicy shop/cart", syn, "flags " + telemetry.FlagNetworkPolicy, "is port 15008 blocked", "not allowed by shop/web"} {
		Expect(text.String()).To(ContainSubstring(part))
	}
}

// underNetworkPolicy is a lab of its own, with several clients, whose ztunnels give up soon.
func underNetworkPolicy(ctx SpecContext) *world.World {
	GinkgoHelper()
	o := lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: {"CONNECT_TIMEOUT=" + connectTimeout.String()}}}
	l, err := world.StartChanged(ctx, "two-nodes", o, func(s *topologies.Spec) {
		for i := range s.Clusters[0].Workloads {
			if w := &s.Clusters[0].Workloads[i]; w.Name == "web" {
				w.Replicas = clients
			}
		}
	})
	Expect(err).NotTo(HaveOccurred())
	l.Needs(lab.CapNetworkPolicy, lab.CapInspect)
	return l
}

// families are false for IPv4 and true for IPv6, as far as the lab has them.
func families(l *world.World) (six []bool) {
	for _, is6 := range []bool{false, true} {
		if l.Pod("shop/cart").Addr(is6).IsValid() {
			six = append(six, is6)
		}
	}
	return six
}

func app(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func networkPorts(numbers []uint16) (out []networkingv1.NetworkPolicyPort) {
	for _, n := range numbers {
		port := intstr.FromInt32(int32(n))
		out = append(out, networkingv1.NetworkPolicyPort{Port: &port})
	}
	return out
}

// ingress is a policy, named like the application that it is about, that lets everybody in at some ports.
func ingress(ns, name string, ports ...uint16) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	np.Spec.PodSelector, np.Spec.PolicyTypes = *app(name), []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{Ports: networkPorts(ports)}}
	return np
}

func egress(ns, name string, ports ...uint16) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	np.Spec.PodSelector, np.Spec.PolicyTypes = *app(name), []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: networkPorts(ports)}}
	return np
}

// enforce applies policies and waits until their rules stand.
func enforce(ctx SpecContext, l *world.World, list ...*networkingv1.NetworkPolicy) {
	GinkgoHelper()
	for _, np := range list {
		Expect(l.Apply(ctx, np)).To(Succeed())
	}
	enforced(ctx, l, list...)
}

// enforced waits until the rules of policies stand, which a driver tells.
func enforced(ctx SpecContext, l *world.World, list ...*networkingv1.NetworkPolicy) {
	GinkgoHelper()
	for _, np := range list {
		node := nodeOf(ctx, l, np)
		Eventually(func(ctx SpecContext) (string, error) {
			in, err := l.Inspect(ctx, lab.Target{Node: node})
			return in.Rules, err
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(SatisfyAll(rulesOf(np)...))
	}
}

// nodeOf is where the pods that a policy is about run: all on one node.
func nodeOf(ctx SpecContext, l *world.World, np *networkingv1.NetworkPolicy) string {
	GinkgoHelper()
	pods, err := l.Pods(ctx)
	Expect(err).NotTo(HaveOccurred())
	i := slices.IndexFunc(pods, func(p lab.PodInfo) bool { return p.Namespace == np.Namespace && p.Labels["app"] == np.Name })
	Expect(i).To(BeNumerically(">=", 0))
	return pods[i].Node
}

// rulesOf matches the rules of a policy that allows ports by number.
func rulesOf(np *networkingv1.NetworkPolicy) []types.GomegaMatcher {
	name := np.Namespace + "/" + np.Name
	all := []types.GomegaMatcher{ContainSubstring("not allowed by " + name)}
	var ports []networkingv1.NetworkPolicyPort
	for _, r := range np.Spec.Ingress {
		ports = append(ports, r.Ports...)
	}
	for _, r := range np.Spec.Egress {
		ports = append(ports, r.Ports...)
	}
	for _, p := range ports {
		all = append(all, MatchRegexp("dport %d .*%s, ", p.Port.IntValue(), name))
	}
	return all
}

// overAnOldTunnel shows that a tunnel of before a policy carries new calls after it (istio/istio#5815): a policy judges
// connections when they are made, here as with Calico, whatever is sent through them later.
func overAnOldTunnel(ctx SpecContext, l *world.World, from string, change func()) {
	GinkgoHelper()
	web, cart := l.Pod(from), l.Pod("shop/cart")
	holding, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = l.Call(holding, web.PodRef, address(cart, otherPort), workload.Options{Silent: world.Budget.Spec, Timeout: world.Budget.Spec})
	}()
	Eventually(l.OpenTunnels).WithContext(ctx).WithArguments(cart.Node).WithTimeout(world.Budget.Evidence).Should(BeNumerically(">", 0))
	change()
	res, err := l.Call(ctx, web.PodRef, address(cart, appPort), workload.Options{})
	stop()
	<-ended
	Expect(err).NotTo(HaveOccurred())
	Expect(res.First().OK).To(BeTrue(), "a tunnel of before the policy carries on: %s", res.First().Error)
	Expect(l.Settle(ctx)).To(Succeed())
}

// dial makes a call to a pod by one of its addresses.
func dial(ctx SpecContext, l *world.World, from, to string, port uint16, six bool) *world.Observation {
	GinkgoHelper()
	obs, err := l.Observe(ctx, l.Pod(from), target(l.Pod(to), port, six), workload.Options{Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred(), "%v", obs)
	return obs
}

func target(p lab.PodInfo, port uint16, six bool) string {
	scheme := map[uint16]string{appPort: "http", otherPort: "tcp"}[port]
	return fmt.Sprintf("%s://%s", scheme, netip.AddrPortFrom(p.Addr(six), port))
}

// noTunnel is the evidence that a client's ztunnel leaves when its packets to port 15008 are dropped.
func noTunnel(o *world.Observation) {
	GinkgoHelper()
	Expect(o.Call.OK).To(BeFalse(), "%s", o)
	Expect(o.Inbound).To(BeNil(), "%s", o)
	Expect(o.Outbound).NotTo(BeNil(), "%s", o)
	Expect(o.Outbound.Record.Flags).To(Equal(telemetry.FlagNetworkPolicy), "%s", o)
	Expect(o.Outbound.Error).To(ContainSubstring("is port 15008 blocked by a NetworkPolicy?"), "%s", o)
	Expect(o.Metrics.Sum(world.Failed, map[string]string{"reporter": "source", "response_flags": telemetry.FlagNetworkPolicy})).To(Equal(1.0), "%s", o)
}

// dropped is a call outside the mesh that nobody answers, once the rules of the last change stand.
func dropped(ctx SpecContext, l *world.World, from, to string, port uint16, six bool) {
	GinkgoHelper()
	Eventually(func(ctx SpecContext) (workload.Class, error) {
		res, err := l.Call(ctx, l.Pod(from).PodRef, target(l.Pod(to), port, six), workload.Options{Timeout: blockedFor})
		return res.First().Class, err
	}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(Equal(workload.ClassTimeout), "%s to %s port %d", from, to, port)
}

// refusals are what the node of a pod says that policies have dropped.
func refusals(ctx SpecContext, l *world.World, pod string) []string {
	GinkgoHelper()
	in, err := l.Inspect(ctx, lab.Target{Node: l.Pod(pod).Node})
	Expect(err).NotTo(HaveOccurred())
	return in.Refused
}

// enrolment changes whether the pods of a namespace are in the mesh.
func enrolment(ctx SpecContext, l *world.World, ns *corev1.Namespace, enrolled bool) {
	GinkgoHelper()
	Expect(l.Apply(ctx, ns)).To(Succeed())
	pods, err := l.Pods(ctx)
	Expect(err).NotTo(HaveOccurred())
	for _, p := range pods {
		if p.Namespace == ns.Name {
			p, err := l.WaitPod(ctx, p.PodRef, func(p lab.PodInfo) bool { return p.Enrolled == enrolled && p.Ready })
			Expect(err).NotTo(HaveOccurred())
			Expect(l.Known(ctx, p)).To(Succeed())
		}
	}
}
