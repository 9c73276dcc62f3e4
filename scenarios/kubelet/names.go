// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var _ = Describe("pods that controllers make, by their names", func() {
	// istio/istio#54921, #42247: the name of one pod led to another.
	It("reach the pod of a StatefulSet that is meant, and any of them by the headless service", Label("TR-11"), func(ctx SpecContext) {
		w := shared()
		const replicas = 3
		base := pod(w, "ordinal", nil)
		set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "ordinal"}}
		set.Spec = appsv1.StatefulSetSpec{
			Replicas: new(int32), ServiceName: "ordinal", Selector: selector(base), Template: template(base), PodManagementPolicy: appsv1.ParallelPodManagement,
		}
		*set.Spec.Replicas = replicas
		apply(ctx, w, service("ordinal", func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }), set)
		members := map[string]lab.PodInfo{}
		for i := range replicas {
			name := fmt.Sprintf("ordinal-%d", i)
			members[name] = enrolled(ctx, w, "shop", name)
		}
		web := w.Pod("shop/web")
		for name, p := range members {
			byName := fmt.Sprintf("http://%s.ordinal.shop.svc.cluster.local:%d", name, portHTTP)
			Eventually(func(ctx SpecContext) bool { return observe(ctx, w, web, byName).Call.OK }).
				WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "until the name is known")
			o := observe(ctx, w, web, byName)
			Expect(o).To(expect.Tunnelled())
			Expect(o.To.Name).To(Equal(name))
			Expect(o.Call.RemoteAddr.Addr()).To(BeElementOf(p.IPs))
		}
		o := observe(ctx, w, web, fmt.Sprintf("http://ordinal.shop:%d", portHTTP))
		Expect(o).To(expect.Tunnelled())
		Expect(members).To(HaveKey(o.To.Name))
		o = observe(ctx, w, w.Pod("plain/batch"), fmt.Sprintf("http://ordinal-1.ordinal.shop.svc.cluster.local:%d", portHTTP))
		Expect(o).To(expect.PlainInbound(), "control: outside the mesh, the same pod by the cluster's own DNS")
		Expect(o.To.Name).To(Equal("ordinal-1"))
	}, SpecTimeout(world.Budget.LongSpec))

	// istio/istio#53176, #52191: what the mesh does not know was dropped.
	It("reach what an ExternalName, a NodePort, a hostPort and a pod of the host's network stand for", Label("TR-12"), func(ctx SpecContext) {
		w := shared()
		const nodePort, hostPort = 31080, 31081
		open := pod(w, "host-port", func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].HostPort = hostPort })
		host := pod(w, "host-network", func(p *corev1.Pod) { // one port: the node has others in use
			p.Spec.HostNetwork, p.Spec.Containers[0].Ports = true, nil
			p.Spec.Containers[0].Command = []string{topologies.WorkloadBinary, "serve", "--http", fmt.Sprint(portHTTP)}
		})
		apply(ctx, w, open, host,
			service("elsewhere", func(s *corev1.Service) {
				s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "cart.shop.svc.cluster.local"}
			}),
			service("host-port", func(s *corev1.Service) {
				s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, nodePort
			}),
			service("host-network", nil))
		backend := enrolled(ctx, w, "shop", "host-port")
		onHost, err := w.WaitPod(ctx, lab.PodRef{Namespace: host.Namespace, Name: host.Name}, func(p lab.PodInfo) bool { return p.Ready })
		Expect(err).NotTo(HaveOccurred())
		Expect(onHost.Enrolled).To(BeFalse(), "a pod of the host's network is in no mesh")

		web, batch, node := w.Pod("shop/web"), w.Pod("plain/batch"), onHost.IPs[0]
		Eventually(func(ctx SpecContext) bool { return observe(ctx, w, web, "http://elsewhere.shop").Call.OK }).
			WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "until the name is known")
		o := observe(ctx, w, web, "http://elsewhere.shop")
		Expect(o).To(expect.Tunnelled(), "ExternalName, inside: it is another name of cart")
		Expect(o.To.Labels["app"]).To(Equal("cart"))

		for what, port := range map[string]int{"NodePort": nodePort, "hostPort": hostPort} {
			target := fmt.Sprintf("http://%s:%d", node, port) // of the node on which both pods are
			Eventually(func(ctx SpecContext) bool {
				res, err := w.Call(ctx, batch.PodRef, target, workload.Options{})
				return err == nil && res.First().OK
			}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "%s: until kube-proxy has it", what)
			for _, from := range []lab.PodInfo{web, batch} {
				res, err := w.Call(ctx, from.PodRef, target, workload.Options{}) // with another source address, by which no evidence finds it
				Expect(err).NotTo(HaveOccurred())
				Expect(res.First().OK).To(BeTrue(), "%s from %s: %v", what, from.Name, res.Errors)
				Expect(res.First().Seen.Workload).To(Equal(backend.Name), "%s from %s", what, from.Name)
			}
		}
		Expect(observe(ctx, w, web, fmt.Sprintf("http://host-network.shop:%d", portHTTP))).To(expect.PlainOutbound(), "in plain text: nobody there takes a tunnel")
		Eventually(func(ctx SpecContext) bool {
			return observe(ctx, w, batch, fmt.Sprintf("http://host-network.shop:%d", portHTTP)).Call.OK
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "control: outside the mesh, where kube-proxy has to have it")
	}, SpecTimeout(world.Budget.LongSpec))
})

// service is one of namespace shop for the pods of the same name.
func service(name string, edit func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	s.Spec.Selector = map[string]string{"app": name}
	s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: portHTTP, TargetPort: intstr.FromInt32(portHTTP)}}
	if edit != nil {
		edit(s)
	}
	return s
}
