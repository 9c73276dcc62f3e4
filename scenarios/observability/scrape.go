// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"fmt"
	"net/netip"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var _ = Describe("a scraper of the mesh, where mutual TLS is required", func() {
	It("gets the metrics of applications and of ztunnel through a tunnel; one outside the mesh gets no application's", world.OwnLab, Label("OB-05"), func(ctx SpecContext) {
		l, err := world.Borrow(ctx, "two-nodes")
		Expect(err).NotTo(HaveOccurred())
		cart := l.Pod("shop/cart")
		zt := l.Now(ctx, "istio-system/ztunnel-"+cart.Node)
		scrape := func(from string, to lab.PodInfo, port uint16, path string) *world.Observation {
			GinkgoHelper()
			url := fmt.Sprintf("http://%s%s", netip.AddrPortFrom(to.Addr(false), port), path)
			obs, err := l.Observe(ctx, l.Pod(from), url, workload.Options{Timeout: world.Budget.Call})
			Expect(err).NotTo(HaveOccurred(), "%v", obs)
			return obs
		}
		Expect(scrape("plain/batch", cart, 8080, "/metrics")).To(expect.PlainInbound(), "control: permissive until told otherwise")

		strict := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "strict"}}
		strict.Spec.Mtls = &securityapi.PeerAuthentication_MutualTLS{Mode: securityapi.PeerAuthentication_MutualTLS_STRICT}
		Expect(l.Establish(ctx, strict)).To(Succeed())
		refused := scrape("plain/batch", cart, 8080, "/metrics")
		Expect(refused.Call.OK).To(BeFalse(), "a plain scrape of an application is refused: %s", refused)
		Expect(refused.Inbound.Record.Flags).To(Equal(telemetry.FlagDeny), refused.String())
		Expect(scrape("shop/web", cart, 8080, "/metrics")).To(expect.Tunnelled())

		for _, path := range []string{"/metrics", "/stats/prometheus"} {
			obs := scrape("shop/web", zt, mesh.PortMetrics, path)
			Expect(obs.Call.Status).To(Equal(200), obs.String())
			Expect(obs.Call.BytesRecv).To(BeNumerically(">", 1000), obs.String())
			for _, e := range []*telemetry.Entry{obs.Outbound, obs.Inbound} {
				Expect(e).NotTo(BeNil(), obs.String())
				Expect(e.Record.HBONEAddr).To(Equal(netip.AddrPortFrom(zt.Addr(false), mesh.PortMetrics)), obs.String())
				Expect(e.Record.Src.Identity).To(Equal(expect.Identity(l.Pod("shop/web"))), obs.String())
				Expect(e.Record.Dst.Identity).To(Equal(expect.Identity(zt)), obs.String())
				Expect(e.Record.Dst.Name).To(HavePrefix(lab.DaemonZtunnel+"-"), obs.String())
			}
		}
		obs := scrape("shop/web", zt, mesh.PortAdmin, "/config_dump")
		Expect(obs.Call.OK).To(BeFalse(), "control: what ztunnel keeps on its loopback no tunnel reaches")
		Expect(obs.Inbound.Error).To(ContainSubstring("refused"), obs.String())

		if plain := scrape("plain/batch", zt, mesh.PortMetrics, "/metrics"); plain.Call.OK {
			Expect(plain.Inbound).To(BeNil())
			world.Finding("ztunnel's metrics port answers plain text even where mutual TLS is required, as upstream's does: it listens on every address " +
				"of a pod in which nothing is captured; a NetworkPolicy can close it, and the tunnel to it stays")
		}
	}, SpecTimeout(world.Budget.Spec))
})
