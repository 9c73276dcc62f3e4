// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// said is what one side must say of a failure; the zero value: nothing.
type said struct{ flag, err string }

var (
	outbound = map[string]string{"reporter": "source"}
	inbound  = map[string]string{"reporter": "destination"}
)

// failures provokes failures, and compares what both sides log and count. What does not agree is gathered: the table is
// read as a whole.
type failures struct {
	ctx SpecContext
	l   *world.World

	wrong []string
}

func (f *failures) note(message string, _ ...int) { f.wrong = append(f.wrong, message) }

func (f *failures) call(what, from, url string, out, in said) {
	GinkgoHelper()
	By(what)
	obs, err := f.l.Observe(f.ctx, f.l.Pod(from), url, workload.Options{Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred(), "%s\n%v", what, obs)
	NewGomega(f.note).Expect(obs.Call.OK).To(BeFalse(), "%s\n%s", what, obs)
	f.side(what, obs, obs.Outbound, outbound, out)
	f.side(what, obs, obs.Inbound, inbound, in)
}

func (f *failures) side(what string, obs *world.Observation, e *telemetry.Entry, reporter map[string]string, want said) {
	g := NewGomega(f.note)
	g.Expect(obs.Metrics.Sum(world.Opened, reporter)).To(BeZero(), "%s\n%s", what, obs)
	if want == (said{}) {
		g.Expect(e).To(BeNil(), "%s\n%s", what, obs)
		g.Expect(obs.Metrics.Sum(world.Failed, reporter)).To(BeZero(), "%s\n%s", what, obs)
		return
	}
	if !g.Expect(e).NotTo(BeNil(), "%s\n%s", what, obs) {
		return
	}
	g.Expect(e.Record.Flags).To(Equal(want.flag), "%s\n%s", what, obs)
	g.Expect(e.Error).To(ContainSubstring(want.err), "%s\n%s", what, obs)
	g.Expect(obs.Metrics.Sum(world.Failed, reporter)).To(Equal(1.0), "%s\n%s", what, obs)
	g.Expect(obs.Metrics.Sum(world.Failed, map[string]string{"reporter": reporter["reporter"], "response_flags": want.flag})).To(Equal(1.0), "%s\n%s", what, obs)
}

func at(scheme string, p lab.PodInfo, port uint16) string {
	return fmt.Sprintf("%s://%s", scheme, netip.AddrPortFrom(p.Addr(false), port))
}

// claimant is a pod outside the mesh that says of itself that it speaks HBONE.
func claimant(ctx SpecContext, l *world.World, name string, command ...string) lab.PodInfo {
	GinkgoHelper()
	p := l.ClonePod("shop/cart", name)
	p.Labels = map[string]string{"app": name, mesh.LabelDataplaneMode: mesh.ModeNone, mesh.LabelTunnel: "http"}
	p.Spec.Containers[0].Command, p.Spec.Containers[0].Args = command, nil
	world.MeshCredentials(p)
	pod, err := l.Join(ctx, p)
	Expect(err).NotTo(HaveOccurred())
	return pod
}

var _ = Describe("response flags", func() {
	It("tell each kind of failure apart, in the log and in the metrics of both sides", world.OwnLab, Label("OB-03"), func(ctx SpecContext) {
		w.Needs(lab.CapSignal, lab.CapLink)
		const soon = "CONNECT_TIMEOUT=900ms" // and nobody else's: a tunnel of an earlier lab would hide that nobody answers
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: {soon}}})
		Expect(err).NotTo(HaveOccurred())
		f := &failures{ctx: ctx, l: l}
		web, cart, ledger := l.Pod("shop/web"), l.Pod("shop/cart"), l.Pod("plain/ledger")
		none := said{}

		cable := l.Link(web.Node, cart.Node)
		Expect(cable.Cut(ctx)).To(Succeed())
		f.call("nobody answers at port 15008", "shop/web", at("http", cart, 8080), said{telemetry.FlagNetworkPolicy, "is port 15008 blocked"}, none)
		f.call("nobody answers outside the mesh", "shop/web", at("http", ledger, 8080), said{telemetry.FlagConnect, "deadline exceeded"}, none)
		Expect(cable.Restore(ctx)).To(Succeed())
		Eventually(func(ctx SpecContext) bool { // the pool has its connection, too, then
			res, err := l.Call(ctx, web.PodRef, at("http", cart, 8080), workload.Options{})
			return err == nil && res.OK == 1
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "control: the link is good again")

		f.call("the application refuses", "shop/web", at("http", cart, 8099), said{telemetry.FlagConnect, "503"}, said{telemetry.FlagConnect, "refused"})
		f.call("the application refuses plain text", "plain/batch", at("http", cart, 8099), none, said{telemetry.FlagConnect, "refused"})
		f.call("a host outside the mesh refuses", "shop/web", at("http", ledger, 8099), said{telemetry.FlagConnect, "refused"}, none)
		f.call("the service has no endpoint", "shop/web", nobodyService(ctx, l), said{telemetry.FlagConnect, "no healthy upstream"}, none)
		f.call("a stranger's certificate", "shop/web", stranger(ctx, l), said{telemetry.FlagTLS, "certificate"}, none)
		f.call("a peer that speaks no HTTP/2", "shop/web", impostor(ctx, l), said{telemetry.FlagH2, ""}, none)
		f.call("plain text where mutual TLS is spoken", "plain/batch", at("http", cart, mesh.PortHBONE), none, said{telemetry.FlagTLS, "TLS"})

		denials(ctx, l)
		f.call("a DENY that matches", "shop/web", at("tcp", cart, 9000), said{telemetry.FlagDeny, "401"}, said{telemetry.FlagDeny, "deny policy matched (shop/no-tcp)"})
		f.call("ALLOWs of which none matches", "shop/web", at("h2c", cart, 8081), said{telemetry.FlagDeny, "401"}, said{telemetry.FlagDeny, "none allowed"})
		f.call("the same without identity", "plain/batch", at("h2c", cart, 8081), none, said{telemetry.FlagDeny, "none allowed"})

		zt := l.Daemon(web.Node, lab.DaemonZtunnel)
		Expect(zt.Restart(ctx, "CA_ADDRESS=https://127.0.0.1:1", soon)).To(Succeed())
		Expect(zt.Ready(ctx)).To(Succeed())
		f.call("no certificate is to be had", "shop/web", at("http", cart, 8080), said{telemetry.FlagIdentity, "127.0.0.1:1"}, none)

		Expect(f.wrong).To(BeEmpty(), strings.Join(f.wrong, "\n"))

		ok, err := l.Observe(ctx, l.Pod("plain/batch"), at("http", cart, 8080), workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(ok.Call.OK).To(BeTrue(), "control\n%s", ok)
		Expect(ok.Inbound.Record.Flags).To(BeEmpty())
		Expect(ok.Metrics.Sum(world.Failed, nil)).To(BeZero())
	}, SpecTimeout(world.Budget.LongSpec))
})

// nobodyService is the URL of a service that selects nobody.
func nobodyService(ctx SpecContext, l *world.World) string {
	GinkgoHelper()
	Expect(l.Establish(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "nobody"}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "nobody"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
	}})).To(Succeed())
	return "http://nobody.shop:80"
}

// stranger is the URL of a pod that says that it speaks HBONE, with a certificate of nobody's.
func stranger(ctx SpecContext, l *world.World) string {
	GinkgoHelper()
	p := claimant(ctx, l, "stranger", "workload", "serve", "--tls", fmt.Sprint(mesh.PortHBONE))
	return at("http", p, 8080)
}

// impostor is the URL of a pod with a good certificate that speaks no HTTP/2.
func impostor(ctx SpecContext, l *world.World) string {
	GinkgoHelper()
	p := claimant(ctx, l, "impostor", "workload", "serve", "--http", "8080")
	_, err := l.Output(ctx, p.PodRef, "workload", "cert", "--out", "/tmp/cert")
	Expect(err).NotTo(HaveOccurred())
	serve, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	ready := newSignal()
	go func() {
		_, err := l.Exec(serve, p.PodRef, []string{"workload", "impostor", "--cert", "/tmp/cert"}, lab.Stdio{Out: ready})
		ended <- err
	}()
	DeferCleanup(func() {
		stop()
		if err := <-ended; err == nil {
			GinkgoWriter.Println("the impostor ended before it was stopped")
		}
	})
	Eventually(ready.C).WithTimeout(world.Budget.Evidence).Should(BeClosed())
	return at("http", p, 8080)
}

// denials applies a DENY and an ALLOW to cart, and waits until they are in force.
func denials(ctx SpecContext, l *world.World) {
	GinkgoHelper()
	port := func(p string) []*securityapi.Rule {
		return []*securityapi.Rule{{To: []*securityapi.Rule_To{{Operation: &securityapi.Operation{Ports: []string{p}}}}}}
	}
	deny := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "no-tcp"}}
	deny.Spec.Action, deny.Spec.Rules = securityapi.AuthorizationPolicy_DENY, port("9000")
	allow := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "only-http"}}
	allow.Spec.Rules = port("8080")
	for _, p := range []*securityv1.AuthorizationPolicy{deny, allow} {
		p.Spec.Selector = &typeapi.WorkloadSelector{MatchLabels: map[string]string{"app": "cart"}}
	}
	Expect(l.Establish(ctx, deny, allow)).To(Succeed())
}
