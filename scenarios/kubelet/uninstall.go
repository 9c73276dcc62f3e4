// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"slices"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var _ = Describe("taking the mesh out of a cluster", func() {
	It("leaves no rules, no plugin and no configuration, and pods that go on", world.OwnLab, Label("LC-13"), func(ctx SpecContext) {
		w, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		w.Needs(lab.CapKubelet, lab.CapInspect)
		web, cart := w.Pod("shop/web"), w.Pod("shop/cart")
		files := openNode(ctx, w, web.Node)
		file, before := files.chain(ctx)
		Expect(plugins(before)).To(ContainElement(plugin), "control: it is chained")
		Expect(rules(ctx, w, lab.Target{Node: web.Node})).To(ContainSubstring("istio"), "control: rules for kubelet's probes")
		Expect(observe(ctx, w, web, url("http", cart, portHTTP))).To(expect.Tunnelled(), "control: it works")

		ns := w.NamespaceObject("shop")
		delete(ns.Labels, mesh.LabelDataplaneMode)
		Expect(w.Apply(ctx, ns)).To(Succeed())
		for _, p := range []lab.PodInfo{web, cart} {
			_, err := w.WaitPod(ctx, p.PodRef, func(p lab.PodInfo) bool { return !p.Enrolled })
			Expect(err).NotTo(HaveOccurred())
		}
		agent := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio-cni-node"}}
		zt := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "ztunnel"}}
		Expect(w.Delete(ctx, agent, zt)).To(Succeed())

		Eventually(func(ctx SpecContext) []string { return plugins(files.read(ctx, file)) }).
			WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(HaveExactElements(slices.DeleteFunc(plugins(before), func(t string) bool { return t == plugin })))
		Eventually(func(ctx SpecContext) string { return rules(ctx, w, lab.Target{Node: web.Node}) }).
			WithContext(ctx).WithTimeout(world.Budget.Propagation).ShouldNot(ContainSubstring("istio"))
		Expect(rules(ctx, w, lab.Target{Pod: web.PodRef})).NotTo(ContainSubstring("istio"))
		Expect(files.look(ctx, configs).Entries).NotTo(ContainElement(ContainSubstring("kubeconfig")))
		Expect(files.has(ctx, "/opt/cni/bin/"+plugin)).To(BeFalse())

		res, err := w.Call(ctx, web.PodRef, url("http", cart, portHTTP), workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(res.OK).To(Equal(1), "the pods go on: %v", res.Errors)
		p := pod(w, "afterwards", nil)
		apply(ctx, w, p)
		_, err = w.WaitPod(ctx, lab.PodRef{Namespace: "shop", Name: p.Name}, func(p lab.PodInfo) bool { return p.Ready && !p.Enrolled })
		Expect(err).NotTo(HaveOccurred(), "and new ones start")
	}, SpecTimeout(world.Budget.LongSpec))
})

func rules(ctx SpecContext, w *world.World, t lab.Target) string {
	GinkgoHelper()
	in, err := w.Inspect(ctx, t)
	Expect(err).NotTo(HaveOccurred())
	return in.Rules
}
