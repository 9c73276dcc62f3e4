// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload/credential"
)

// appToken is the token for the API server that every pod has.
const appToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

var _ = Describe("the mesh's authority", func() {
	It("gives a node's proxy the identities of the pods on its node, and no others", Label("ID-07", "SE-08"), func(ctx SpecContext) {
		web, stock := w.Pod("shop/web"), w.Pod("shop/stock") // node1, node2
		node1, node2 := ztunnelPod(web.Node), ztunnelPod(stock.Node)
		Expect(certify(ctx, node1, expect.Identity(web).String())).To(BeEmpty(), "control: it runs there")
		Expect(certify(ctx, node2, expect.Identity(stock).String())).To(BeEmpty(), "control: it runs there")

		Expect(certify(ctx, node1, expect.Identity(stock).String())).To(And(ContainSubstring("PermissionDenied"), ContainSubstring("runs on node ")))
		Expect(certify(ctx, node1, "spiffe://cluster.local/ns/shop/sa/nobody")).To(ContainSubstring("PermissionDenied"))
		Expect(certify(ctx, node1, "spiffe://elsewhere/ns/shop/sa/web")).To(And(ContainSubstring("PermissionDenied"), ContainSubstring("trust domain")))

		By("another node's token, on this node: it is worth what it is worth on its own")
		token, err := w.Output(ctx, node1, "workload", "cat", credential.DefaultToken)
		Expect(err).NotTo(HaveOccurred())
		writeFile(ctx, w, node2, "/tmp/stolen", string(token))
		Expect(certify(ctx, node2, expect.Identity(stock).String(), "--token", "/tmp/stolen")).To(ContainSubstring("PermissionDenied"))
	}, SpecTimeout(world.Budget.Spec))

	It("gives an application its own identity alone, and nothing without a good token", Label("ID-07", "SE-08"), func(ctx SpecContext) {
		web := w.Pod("shop/web")
		app := w.ClonePod("shop/web", "thief")
		app.Labels = map[string]string{"app": "thief", mesh.LabelDataplaneMode: mesh.ModeNone}
		world.MeshCredentials(app)
		thief := lab.PodRef{Namespace: "shop", Name: "thief"}
		DeferCleanup(func(ctx SpecContext) { Expect(w.Delete(ctx, app)).To(Succeed()) })
		_, err := w.Join(ctx, app)
		Expect(err).NotTo(HaveOccurred())
		own := expect.Identity(web).String()
		Expect(certify(ctx, thief, own)).To(BeEmpty(), "control: its own identity")
		Expect(certify(ctx, thief, expect.Identity(w.Pod("shop/cart-0")).String())).To(And(ContainSubstring("PermissionDenied"), ContainSubstring("its own identity only")))

		token, err := w.Output(ctx, thief, "workload", "cat", credential.DefaultToken)
		Expect(err).NotTo(HaveOccurred())
		parts := strings.Split(strings.TrimSpace(string(token)), ".")
		Expect(parts).To(HaveLen(3))
		writeFile(ctx, w, thief, "/tmp/empty", "")
		writeFile(ctx, w, thief, "/tmp/forged", parts[0]+"."+parts[1]+"."+strings.Repeat("A", len(parts[2])))
		for name, file := range map[string]string{"none": "/tmp/empty", "one for the API server": appToken, "one that nobody signed": "/tmp/forged"} {
			Expect(certify(ctx, thief, own, "--token", file)).To(ContainSubstring("Unauthenticated"), name)
		}

		By("the token of a pod that is gone")
		Expect(w.Delete(ctx, app)).To(Succeed())
		writeFile(ctx, w, web.PodRef, "/tmp/orphan", string(token))
		root, err := w.Output(ctx, ztunnelPod(web.Node), "workload", "cat", credential.DefaultRoot)
		Expect(err).NotTo(HaveOccurred())
		writeFile(ctx, w, web.PodRef, "/tmp/root.pem", string(root))
		Expect(world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
			said := certify(ctx, web.PodRef, own, "--token", "/tmp/orphan", "--root", "/tmp/root.pem")
			return strings.Contains(said, "PermissionDenied") && strings.Contains(said, "does not exist"), nil
		})).To(Succeed())
	}, SpecTimeout(world.Budget.Spec))
})

// certify has a pod ask the authority for an identity, and returns why it got none; "" if it got it.
func certify(ctx context.Context, pod lab.PodRef, id string, more ...string) string {
	_, err := w.Output(ctx, pod, append([]string{"workload", "cert", "--out", "/tmp/certificate", "--identity", id}, more...)...)
	if err != nil {
		return err.Error()
	}
	return ""
}
