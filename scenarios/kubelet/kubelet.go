// SPDX-License-Identifier: Apache-2.0

// Package kubelet holds the scenarios that need a real kubelet and Kubernetes' own controllers: probes, init containers,
// controllers' pods, node ports, node taints, and what the CNI chain does when its agent comes and goes.
package kubelet

import (
	"context"
	"fmt"
	"maps"
	"net/netip"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// Ports of every workload.
const (
	portHTTP = 8080
	portGRPC = 8082
	portTCP  = 9000
)

// shared is the suite's lab, if it has a kubelet.
func shared() *world.World {
	GinkgoHelper()
	w := world.Shared()
	w.Needs(lab.CapKubelet)
	return w
}

// pod is one like shop/web, of its own name, that is in no service.
func pod(w *world.World, name string, edit func(*corev1.Pod)) *corev1.Pod {
	GinkgoHelper()
	p := w.ClonePod("shop/web", name)
	p.Labels = map[string]string{"app": name}
	if edit != nil {
		edit(p)
	}
	return p
}

// template makes a pod the template of a controller's pods, which may run on any node.
func template(p *corev1.Pod) corev1.PodTemplateSpec {
	t := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: maps.Clone(p.Labels)}, Spec: p.Spec}
	t.Spec.NodeName = ""
	return t
}

func selector(p *corev1.Pod) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: maps.Clone(p.Labels)}
}

// apply makes objects that go when the scenario ends.
func apply(ctx SpecContext, w *world.World, objs ...runtime.Object) {
	GinkgoHelper()
	Expect(w.Apply(ctx, objs...)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(w.Delete(ctx, objs...)).To(Succeed()) }, NodeTimeout(world.Budget.Down))
}

// enrolled waits until a pod is ready and in the mesh.
func enrolled(ctx context.Context, w *world.World, ns, name string) lab.PodInfo {
	GinkgoHelper()
	p, err := w.WaitPod(ctx, lab.PodRef{Namespace: ns, Name: name}, func(p lab.PodInfo) bool { return p.Ready && p.Enrolled })
	Expect(err).NotTo(HaveOccurred())
	return p
}

// get is an object as the API server has it now.
func get[T runtime.Object](ctx context.Context, w *world.World, obj T) (T, error) {
	return obj, w.Get(ctx, obj)
}

// restarts is how often a pod's containers were started anew.
func restarts(ctx context.Context, w *world.World, p *corev1.Pod) (n int32, err error) {
	now, err := get(ctx, w, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}})
	for _, c := range now.Status.ContainerStatuses {
		n += c.RestartCount
	}
	return n, err
}

// named is the metadata of what has no namespace.
func named(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

func url(scheme string, to lab.PodInfo, port uint16) string {
	return fmt.Sprintf("%s://%s", scheme, netip.AddrPortFrom(to.IPs[0], port))
}

// observe makes one call.
func observe(ctx context.Context, w *world.World, from lab.PodInfo, target string) *world.Observation {
	GinkgoHelper()
	o, err := w.Observe(ctx, from, target, workload.Options{})
	Expect(err).NotTo(HaveOccurred(), "%v", o)
	return o
}
