// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// plugin is the type of the mesh's plugin in a CNI chain.
const plugin = "ambient-cni"

// plugins are the types of a chain's plugins, in order.
func plugins(content string) []string {
	GinkgoHelper()
	var list struct{ Plugins []struct{ Type string } }
	Expect(json.Unmarshal([]byte(content), &list)).To(Succeed(), content)
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Type)
	}
	return types
}

var _ = Describe("the CNI chain of a node", func() {
	It("is repaired when another project rewrites it", Label("CN-05"), func(ctx SpecContext) {
		w := shared()
		name := w.Pod("shop/web").Node
		files := openNode(ctx, w, name)
		file, before := files.chain(ctx)
		Expect(plugins(before)).To(ContainElement(plugin), "control: it is chained")
		var list map[string]any
		Expect(json.Unmarshal([]byte(before), &list)).To(Succeed())
		list["plugins"] = slices.DeleteFunc(list["plugins"].([]any), func(p any) bool { return p.(map[string]any)["type"] == plugin })
		foreign, err := json.Marshal(list)
		Expect(err).NotTo(HaveOccurred())
		files.write(ctx, file, string(foreign))
		Eventually(func(ctx SpecContext) []string { return plugins(files.read(ctx, file)) }).
			WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(HaveExactElements(plugins(before)))
		joins(ctx, w, "after-repair", name)
	}, SpecTimeout(world.Budget.LongSpec))

	It("keeps new pods of the mesh waiting while its agent is away, and lets others start", Label("LC-04"), func(ctx SpecContext) {
		w := shared()
		w.Needs(lab.CapSignal)
		web := w.Pod("shop/web")
		agent := w.Daemon(web.Node, lab.DaemonCNIAgent)
		Expect(podOfToken(openNode(ctx, w, web.Node).read(ctx, configs+"/ZZZ-istio-cni-kubeconfig"))).To(BeNil(), "the plugin's token does not end with the agent's pod")
		Expect(agent.Stop(ctx)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { // however the scenario ends
			Expect(agent.Start(ctx)).To(Succeed())
			Expect(agent.Ready(ctx)).To(Succeed())
		}, NodeTimeout(world.Budget.Up))
		late := pod(w, "late", func(p *corev1.Pod) { p.Spec.NodeName = web.Node })
		other := pod(w, "other", func(p *corev1.Pod) {
			p.Namespace, p.Spec.ServiceAccountName, p.Spec.NodeName = "plain", "batch", web.Node
		})
		apply(ctx, w, late, other)
		_, err := w.WaitPod(ctx, lab.PodRef{Namespace: "plain", Name: "other"}, func(p lab.PodInfo) bool { return p.Ready })
		Expect(err).NotTo(HaveOccurred(), "a pod outside the mesh needs no agent")
		Eventually(func(ctx context.Context) (string, error) {
			return w.PodProblem(ctx, lab.PodRef{Namespace: "shop", Name: "late"})
		}).
			WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(ContainSubstring("cni"), "the pod says what it waits for")
		o := observe(ctx, w, web, url("http", w.Pod("shop/cart-1"), portHTTP))
		Expect(o).To(expect.Tunnelled(), "pods that run do not need the agent")

		Expect(agent.Start(ctx)).To(Succeed())
		Expect(agent.Ready(ctx)).To(Succeed())
		p := enrolled(ctx, w, "shop", "late")
		Expect(observe(ctx, w, p, url("http", w.Pod("shop/cart-1"), portHTTP))).To(expect.Tunnelled())
	}, SpecTimeout(world.Budget.LongSpec))

	for _, order := range [][]string{{lab.DaemonCNIAgent, lab.DaemonZtunnel}, {lab.DaemonZtunnel, lab.DaemonCNIAgent}} {
		// istio/istio#53843: "no ztunnel connection", and no pod starts on the node any more.
		It("recovers when "+order[0]+" and then "+order[1]+" are restarted together", Label("LC-05"), func(ctx SpecContext) {
			w := shared()
			w.Needs(lab.CapSignal)
			web := w.Pod("shop/web")
			for _, name := range order {
				Expect(w.Daemon(web.Node, name).Stop(ctx)).To(Succeed())
			}
			for _, name := range order {
				Expect(w.Daemon(web.Node, name).Start(ctx)).To(Succeed())
			}
			for _, name := range order {
				Expect(w.Daemon(web.Node, name).Ready(ctx)).To(Succeed())
			}
			Eventually(func(ctx SpecContext) (bool, error) {
				return expect.Tunnelled().Match(observe(ctx, w, web, url("http", w.Pod("shop/cart-1"), portHTTP)))
			}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "pods of before are in the mesh again")
			joins(ctx, w, "after-both", web.Node)
		}, SpecTimeout(world.Budget.LongSpec))
	}

	It("opens a node to pods once its agent is ready, and not before", Label("LC-12"), func(ctx SpecContext) {
		w := shared()
		w.Needs(lab.CapSignal)
		web := w.Pod("shop/web")
		agent := w.Daemon(web.Node, lab.DaemonCNIAgent)
		Expect(agent.Stop(ctx)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			Expect(agent.Start(ctx)).To(Succeed())
			Expect(agent.Ready(ctx)).To(Succeed())
		}, NodeTimeout(world.Budget.Up))
		taint := corev1.Taint{Key: notReady, Value: "true", Effect: corev1.TaintEffectNoSchedule}
		Expect(w.Apply(ctx, &corev1.Node{ObjectMeta: named(web.Node), Spec: corev1.NodeSpec{Taints: []corev1.Taint{taint}}})).To(Succeed())
		Expect(taints(ctx, w, web.Node)).To(ContainElement(notReady), "control: without the agent it stays")
		Expect(agent.Start(ctx)).To(Succeed())
		Eventually(taints).WithContext(ctx).WithArguments(w, web.Node).WithTimeout(world.Budget.Propagation).ShouldNot(ContainElement(notReady))
		joins(ctx, w, "after-taint", web.Node)
	}, SpecTimeout(world.Budget.LongSpec))
})

// notReady is the taint with which a node is created where pods must wait for the mesh.
const notReady = "cni.istio.io/not-ready"

func taints(ctx context.Context, w *world.World, name string) (keys []string, err error) {
	n, err := get(ctx, w, &corev1.Node{ObjectMeta: named(name)})
	for _, t := range n.Spec.Taints {
		keys = append(keys, t.Key)
	}
	return keys, err
}

// joins shows that a new pod on a node is in the mesh.
func joins(ctx SpecContext, w *world.World, name, node string) {
	GinkgoHelper()
	p := pod(w, name, func(p *corev1.Pod) { p.Spec.NodeName = node })
	apply(ctx, w, p)
	from := enrolled(ctx, w, "shop", name)
	Eventually(func(ctx SpecContext) (bool, error) {
		return expect.Tunnelled().Match(observe(ctx, w, from, url("http", w.Pod("shop/cart-1"), portHTTP)))
	}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "a new pod of %s", node)
}

// podOfToken is the pod that a kubeconfig's token is bound to; nil if there is none.
func podOfToken(kubeconfig string) *struct{ Name string } {
	GinkgoHelper()
	_, rest, ok := strings.Cut(kubeconfig, "token: ")
	Expect(ok).To(BeTrue(), "a token")
	parts := strings.Split(strings.Fields(rest)[0], ".")
	Expect(parts).To(HaveLen(3), "it is a JSON Web Token")
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	Expect(err).NotTo(HaveOccurred())
	var claims struct {
		Kubernetes struct {
			ServiceAccount struct{ Name string }
			Pod            *struct{ Name string }
		} `json:"kubernetes.io"`
	}
	Expect(json.Unmarshal(text, &claims)).To(Succeed())
	Expect(claims.Kubernetes.ServiceAccount.Name).NotTo(BeEmpty(), "control: it is an account's")
	return claims.Kubernetes.Pod
}
