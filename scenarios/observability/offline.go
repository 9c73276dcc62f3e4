// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"fmt"
	"net/netip"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var _ = Describe("two ztunnels without a control plane", func() {
	It("carry traffic by LOCAL_XDS and FAKE_CA, enforce its policy and log the denial on both sides", world.OwnLab, Label("OB-02"), func(ctx SpecContext) {
		w.Needs(lab.CapSignal)
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		web, cart := l.Pod("shop/web"), l.Pod("shop/cart")
		Expect(l.Daemon("", lab.DaemonControl).Stop(ctx)).To(Succeed())
		for _, node := range l.Nodes() {
			z := l.Daemon(node, lab.DaemonZtunnel)
			Expect(z.Restart(ctx, "LOCAL_XDS="+localXDS(web, cart), "FAKE_CA=true", "XDS_ADDRESS=", "CA_ADDRESS=")).To(Succeed())
			Expect(z.Ready(ctx)).To(Succeed())
		}

		allowed, err := l.Observe(ctx, web, fmt.Sprintf("http://%s", netip.AddrPortFrom(cart.Addr(false), 8080)), workload.Options{})
		Expect(err).NotTo(HaveOccurred(), "%v", allowed)
		Expect(allowed).To(expect.Tunnelled(), "control: the policy names port 9000 only")

		denied, err := l.Observe(ctx, web, fmt.Sprintf("tcp://%s", netip.AddrPortFrom(cart.Addr(false), 9000)), workload.Options{Size: 10, Timeout: world.Budget.Call})
		Expect(err).NotTo(HaveOccurred(), "%v", denied)
		Expect(denied.Call.OK).To(BeFalse(), denied.String())
		Expect(denied.Inbound).NotTo(BeNil(), denied.String())
		Expect(denied.Inbound.Level).To(Equal("error"))
		Expect(denied.Inbound.Error).To(ContainSubstring("policy"))
		Expect(denied.Inbound.Record.Flags).To(Equal(telemetry.FlagDeny))
		Expect(denied.Inbound.Record.Policy).To(Equal("shop/no-tcp-from-web"))
		Expect(denied.Inbound.Record.Src.Identity).To(Equal(expect.Identity(web)))
		Expect(denied.Outbound).NotTo(BeNil(), denied.String())
		Expect(denied.Outbound.Error).To(ContainSubstring("401"))
		Expect(denied.Outbound.Record.Flags).To(Equal(telemetry.FlagDeny))
		Expect(denied.Metrics.Sum(world.Opened, map[string]string{"reporter": "destination"})).To(BeZero())

		By("enforcing policy on plain text too, where nobody has an identity")
		outsider := l.ClonePod("shop/web", "outsider")
		outsider.Labels = map[string]string{"app": "outsider", mesh.LabelDataplaneMode: mesh.ModeNone}
		Expect(l.Apply(ctx, outsider)).To(Succeed())
		nobody, err := l.WaitPod(ctx, lab.PodRef{Namespace: "shop", Name: "outsider"}, func(p lab.PodInfo) bool { return p.Ready })
		Expect(err).NotTo(HaveOccurred())
		passed, err := l.Observe(ctx, nobody, fmt.Sprintf("http://%s", netip.AddrPortFrom(cart.Addr(false), 8080)), workload.Options{})
		Expect(err).NotTo(HaveOccurred(), "%v", passed)
		Expect(passed).To(expect.PlainInbound(), "control: the policy names another port")
		plain, err := l.Observe(ctx, nobody, fmt.Sprintf("h2c://%s", netip.AddrPortFrom(cart.Addr(false), 8081)), workload.Options{Timeout: world.Budget.Call})
		Expect(err).NotTo(HaveOccurred(), "%v", plain)
		Expect(plain.Call.OK).To(BeFalse(), plain.String())
		Expect(plain.Inbound).NotTo(BeNil(), plain.String())
		Expect(plain.Inbound.Record.Flags).To(Equal(telemetry.FlagDeny))
		Expect(plain.Inbound.Record.Policy).To(Equal("shop/no-plain-text"))
	}, SpecTimeout(world.Budget.LongSpec))
})

// localXDS describes two pods and a policy in the form that LOCAL_XDS_PATH takes.
func localXDS(client, server lab.PodInfo) string {
	var b strings.Builder
	b.WriteString("workloads:\n")
	for _, p := range []lab.PodInfo{client, server} {
		var ips []string
		for _, ip := range p.IPs {
			ips = append(ips, fmt.Sprintf("%q", ip))
		}
		fmt.Fprintf(&b, "- uid: Kubernetes//Pod/%s/%s\n  name: %s\n  namespace: %s\n  serviceAccount: %s\n", p.Namespace, p.Name, p.Name, p.Namespace, p.ServiceAccount)
		fmt.Fprintf(&b, "  node: %s\n  protocol: HBONE\n  workloadIps: [%s]\n", p.Node, strings.Join(ips, ", "))
	}
	fmt.Fprintf(&b, `policies:
- name: no-tcp-from-web
  namespace: shop
  scope: Namespace
  action: Deny
  rules:
  - - - principals: [{Exact: %q}]
    - - destinationPorts: [9000]
- name: no-plain-text
  namespace: shop
  scope: Namespace
  action: Deny
  rules:
  - - - notPrincipals: [{Presence: {}}]
    - - destinationPorts: [8081]
`, expect.Identity(client).Principal())
	return b.String()
}
