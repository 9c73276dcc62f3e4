// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"fmt"
	"math"
	"net/netip"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	networking "istio.io/api/networking/v1alpha3"
	istiov1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// draws is how many connections a distribution is judged by.
const draws = 150

// balanced is the name of the service that each scenario makes and removes.
const balanced = "balanced"

var cartPods = []string{"shop/cart-0", "shop/cart-1", "shop/cart-2"} // on node1 (zone-a), node2 and node3 (zone-b)

var _ = Describe("load balancing", func() {
	DescribeTable("spreads connections over the endpoints that are near enough", Label("TR-16"),
		func(ctx SpecContext, change func(*corev1.Service), fromWeb, fromMobile []string) {
			serve(ctx, service("cart", change))
			expectShares(ctx, "shop/web", equal(fromWeb))       // node1, zone-a
			expectShares(ctx, "shop/mobile", equal(fromMobile)) // node2, zone-b
		},
		Entry("all of them alike, by default", SpecTimeout(world.Budget.Spec), func(*corev1.Service) {}, cartPods, cartPods),
		Entry("the zone's own, with PreferClose", SpecTimeout(world.Budget.Spec), distribution("PreferClose"), cartPods[:1], cartPods[1:]),
		Entry("the zone's own, with PreferSameZone", SpecTimeout(world.Budget.Spec), distribution("PreferSameZone"), cartPods[:1], cartPods[1:]),
		Entry("the node's own, with PreferSameNode", SpecTimeout(world.Budget.Spec), distribution("PreferSameNode"), cartPods[:1], cartPods[1:2]),
		Entry("the node's own and no others, with a local traffic policy", SpecTimeout(world.Budget.Spec), local, cartPods[:1], cartPods[1:2]),
	)

	It("goes farther if nothing is near, unless it must not", Label("TR-16"), func(ctx SpecContext) {
		stock := []string{"shop/stock"} // on node2 alone
		serve(ctx, service("stock", distribution("PreferSameNode")))
		expectShares(ctx, "shop/web", equal(stock))

		Expect(w.Establish(ctx, service("stock", local))).To(Succeed())
		obs := observe(ctx, "shop/web", "http://"+balanced+".shop:80", workload.Options{})
		Expect(obs.Call.OK).To(BeFalse(), "a local policy lets nothing leave the node")
		Expect(obs.Outbound.Error).To(And(ContainSubstring("no healthy upstream"), ContainSubstring("outside the client's scope")))
		Expect(obs.Outbound.Record.Flags).To(Equal(telemetry.FlagConnect))
		expectShares(ctx, "shop/mobile", equal(stock)) // control: on its node it answers
	}, SpecTimeout(world.Budget.Spec))

	It("weighs endpoints as a ServiceEntry says", Label("TR-16"), func(ctx SpecContext) {
		weights := map[string]uint32{cartPods[0]: 1, cartPods[1]: 4}
		entry := &istiov1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: balanced}}
		entry.SetGroupVersionKind(istiov1.SchemeGroupVersion.WithKind("ServiceEntry"))
		entry.Spec.Hosts, entry.Spec.Addresses = []string{"balanced.example"}, []string{"198.51.100.16"}
		entry.Spec.Location, entry.Spec.Resolution = networking.ServiceEntry_MESH_INTERNAL, networking.ServiceEntry_STATIC
		entry.Spec.Ports = []*networking.ServicePort{{Number: 80, Name: "http", Protocol: "HTTP", TargetPort: 8080}}
		for pod, weight := range weights {
			entry.Spec.Endpoints = append(entry.Spec.Endpoints, &networking.WorkloadEntry{Address: w.Pod(pod).Addr(false).String(), Weight: weight})
		}
		serve(ctx, entry)
		expectSharesAt(ctx, "shop/web", "http://198.51.100.16", map[string]float64{cartPods[0]: 0.2, cartPods[1]: 0.8})
	}, SpecTimeout(world.Budget.Spec))

	It("leaves out what is not ready, unless the service publishes it", Label("TR-16"), func(ctx SpecContext) {
		unready := w.ClonePod("shop/stock", "unready")
		unready.Labels = map[string]string{"app": "unready"}
		app := &unready.Spec.Containers[0] // it serves, and neither kubelet nor a lab without one takes it for ready
		app.Command = append(app.Command, "--unready")
		app.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{topologies.WorkloadBinary, "cat", "/nonexistent"}}}}
		apply(ctx, unready)
		ref := lab.PodRef{Namespace: "shop", Name: "unready"}
		pod, err := w.WaitPod(ctx, ref, func(p lab.PodInfo) bool { return len(p.IPs) > 0 && p.Enrolled })
		Expect(err).NotTo(HaveOccurred())
		Expect(w.Known(ctx, pod)).To(Succeed())
		Eventually(func(ctx SpecContext) bool {
			return observe(ctx, "shop/web", fmt.Sprintf("http://%s", netip.AddrPortFrom(pod.IPs[0], 8080)), workload.Options{}).Call.OK
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "it serves")
		Expect(pod.Ready).To(BeFalse(), "control")
		publish := func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }
		serve(ctx, service("unready", publish))
		expectShares(ctx, "shop/web", equal([]string{"shop/unready"}))

		Expect(w.Establish(ctx, service("unready", func(*corev1.Service) {}))).To(Succeed())
		obs := observe(ctx, "shop/web", "http://"+balanced+".shop:80", workload.Options{})
		Expect(obs.Call.OK).To(BeFalse(), "a pod that is not ready gets nothing")
		Expect(obs.Outbound.Error).To(ContainSubstring("1 are unhealthy"), obs.String())
	}, SpecTimeout(world.Budget.Spec))
})

// service is the scenario's, for the pods of an app.
func service(app string, change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: balanced}}
	s.Spec.Selector = map[string]string{"app": app}
	s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}}
	change(s)
	return s
}

func distribution(d string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.TrafficDistribution = &d }
}

func local(s *corev1.Service) {
	policy := corev1.ServiceInternalTrafficPolicyLocal
	s.Spec.InternalTrafficPolicy = &policy
}

// apply makes objects for as long as the scenario runs.
func apply(ctx SpecContext, objs ...runtime.Object) {
	GinkgoHelper()
	DeferCleanup(func(ctx SpecContext) { Expect(w.Delete(ctx, objs...)).To(Succeed()) }, NodeTimeout(world.Budget.Spec))
	Expect(w.Apply(ctx, objs...)).To(Succeed())
}

// serve makes the service, which every proxy knows from then on, and lets every proxy forget it at the end: the next one
// of its name has another address, and is not to be taken for this one.
func serve(ctx SpecContext, service runtime.Object) {
	GinkgoHelper()
	DeferCleanup(func(ctx SpecContext) { Expect(w.Converge(ctx)).To(Succeed()) }, NodeTimeout(world.Budget.Spec))
	apply(ctx, service)
	Expect(w.Converge(ctx)).To(Succeed())
}

func equal(pods []string) map[string]float64 {
	shares := map[string]float64{}
	for _, p := range pods {
		shares[p] = 1 / float64(len(pods))
	}
	return shares
}

func expectShares(ctx SpecContext, from string, want map[string]float64) {
	GinkgoHelper()
	expectSharesAt(ctx, from, "http://"+balanced+".shop:80", want)
}

// expectSharesAt makes many connections. A count within five standard deviations of a binomial distribution is missed once in a million
// runs; one at random over another number of endpoints is far outside.
func expectSharesAt(ctx SpecContext, from, url string, want map[string]float64) {
	GinkgoHelper()
	res, err := w.Call(ctx, w.Pod(from).PodRef, url, workload.Options{Count: draws, Concurrency: 4, Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred())
	Expect(w.Settle(ctx)).To(Succeed())
	Expect(res.OK).To(Equal(draws), "failures: %v", res.Errors)
	for pod, n := range res.Servers {
		Expect(want).To(HaveKey(pod), "%s: %d of %d connections went to %s: %v", from, n, draws, pod, res.Servers)
	}
	for pod, share := range want {
		spread := 5 * math.Sqrt(draws*share*(1-share))
		Expect(float64(res.Servers[pod])).To(BeNumerically("~", draws*share, spread), "%s: %s of %v", from, pod, res.Servers)
	}
}
