// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// probes are kubelet's four ways to ask.
var probes = map[string]corev1.ProbeHandler{
	"http": {HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(portHTTP)}},
	"tcp":  {TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(portTCP)}},
	"grpc": {GRPC: &corev1.GRPCAction{Port: portGRPC}},
	"exec": {Exec: &corev1.ExecAction{Command: []string{topologies.WorkloadBinary, "look", "/"}}},
}

// everySecond asks so, from the start, and takes the first failure for the truth after it was well once.
func everySecond(h corev1.ProbeHandler, failures int32) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: failures}
}

// Users meet this when they enrol (istio/istio#45781), and again with a default-deny NetworkPolicy (istio.io#16660).
var _ = Describe("kubelet's probes of a pod in the mesh", func() {
	It("succeed where mutual TLS is required and NetworkPolicy allows nobody in", Label("P4-04", "CN-06"), func(ctx SpecContext) {
		w := shared()
		w.Needs(lab.CapNetworkPolicy)
		probed := map[string]lab.PodInfo{}
		began := time.Now()
		apply(ctx, w, strict("shop"), nobodyIn("shop", "probed"))
		for kind, handler := range probes {
			apply(ctx, w, pod(w, "probed-"+kind, func(p *corev1.Pod) {
				p.Labels["deny"] = "probed"
				p.Spec.Containers[0].ReadinessProbe = everySecond(handler, 1)
				p.Spec.Containers[0].LivenessProbe = everySecond(handler, 3)
				p.Spec.Containers[0].StartupProbe = everySecond(handler, 30)
			}))
		}
		for kind := range probes {
			probed[kind] = enrolled(ctx, w, "shop", "probed-"+kind)
		}

		By("control: a probe that cannot succeed has its container restarted")
		broken := pod(w, "broken", func(p *corev1.Pod) {
			p.Spec.Containers[0].LivenessProbe = everySecond(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(1)}}, 1)
		})
		apply(ctx, w, broken)
		Eventually(restarts).WithContext(ctx).WithArguments(w, broken).WithTimeout(world.Budget.Propagation).Should(BeNumerically(">", 0))

		By("control: nobody else gets in, and kubelet has gone on asking meanwhile")
		for kind, p := range probed {
			blocked(ctx, w, w.Pod("plain/batch"), p)
			n, err := restarts(ctx, w, pod(w, p.Name, nil))
			Expect(err).NotTo(HaveOccurred())
			Expect(n).To(BeZero(), kind)
			now, err := w.Find(ctx, p.PodRef)
			Expect(err).NotTo(HaveOccurred())
			Expect(now.Ready).To(BeTrue(), kind)
			notSeen(ctx, w, p, began)
		}
	}, SpecTimeout(world.Budget.LongSpec))

	It("succeed where mutual TLS is required, and callers without it are refused", Label("P4-04"), func(ctx SpecContext) {
		w := shared()
		p := pod(w, "strictly", func(p *corev1.Pod) {
			p.Spec.Containers[0].ReadinessProbe = everySecond(probes["http"], 1)
		})
		apply(ctx, w, p, strict("shop"))
		to := enrolled(ctx, w, "shop", p.Name)
		Eventually(func(ctx SpecContext) bool {
			return !observe(ctx, w, w.Pod("plain/batch"), url("http", to, portHTTP)).Call.OK
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "control: plain text is refused")
		Expect(observe(ctx, w, w.Pod("shop/mobile"), url("http", to, portHTTP))).To(expect.Tunnelled(), "control: the mesh gets in")
		now, err := w.Find(ctx, to.PodRef)
		Expect(err).NotTo(HaveOccurred())
		Expect(now.Ready).To(BeTrue())
	}, SpecTimeout(world.Budget.Spec))
})

// blocked: a NetworkPolicy drops what a pod of another namespace sends.
func blocked(ctx SpecContext, w *world.World, from, to lab.PodInfo) {
	GinkgoHelper()
	res, err := w.Call(ctx, from.PodRef, url("http", to, portHTTP), workload.Options{Timeout: time.Second})
	Expect(err).NotTo(HaveOccurred())
	Expect(res.First().Class).To(Equal(workload.ClassTimeout), "%s", res.First().Error)
}

// notSeen: a probe passes capture by, so that the pod's ztunnel has nothing to say of it.
func notSeen(ctx SpecContext, w *world.World, p lab.PodInfo, since time.Time) {
	GinkgoHelper()
	entries, err := w.Entries(ctx, p.Node, since)
	Expect(err).NotTo(HaveOccurred())
	for _, e := range entries {
		Expect(e.Record.Dst.Name).NotTo(Equal(p.Name), "%+v", e)
	}
}

func strict(ns string) *securityv1.PeerAuthentication {
	return &securityv1.PeerAuthentication{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "strict"},
		Spec:       securityapi.PeerAuthentication{Mtls: &securityapi.PeerAuthentication_MutualTLS{Mode: securityapi.PeerAuthentication_MutualTLS_STRICT}},
	}
}

// nobodyIn denies all that comes to pods with the label "deny".
func nobodyIn(ns, name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "nobody-to-" + name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"deny": name}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
}
