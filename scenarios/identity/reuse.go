// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// An address that changed hands must not carry an identity with it: istio/istio#46628, istio/ztunnel#1409 (two workloads of
// one address). Upstream mended it by what the node agent says of a pod (istio/ztunnel#777, #1218), and so do we.
var _ = Describe("an address that has changed hands", func() {
	It("gives its new owner nothing of the old one's identity, whatever the control plane still believes", world.LongOwnLab, Label("ID-10"), func(ctx SpecContext) {
		w.Needs(lab.CapSignal, lab.CapIPv6)
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		web, cart := l.Pod("shop/web"), l.Pod("shop/cart")
		at := func(ip netip.Addr, scheme string, port uint16) string {
			return fmt.Sprintf("%s://%s", scheme, netip.AddrPortFrom(ip, port))
		}
		// The old owner of web's addresses is an administrator, and one of cart's belonged to another.
		stale := believe(
			belief{"gone", "admin", web.Node, web.IPs}, belief{"web", "web", web.Node, web.IPs},
			belief{"cart", "cart", cart.Node, []netip.Addr{cart.Addr(false)}}, belief{"moved", "admin", cart.Node, []netip.Addr{cart.Addr(true)}},
		)
		restart := func(node, doc string) {
			z := l.Daemon(node, lab.DaemonZtunnel)
			Expect(z.Restart(ctx, "LOCAL_XDS="+doc, "XDS_ADDRESS=", "LOCAL_WORKLOAD_TIMEOUT=300ms")).To(Succeed())
			Expect(z.Ready(ctx)).To(Succeed())
		}
		for _, node := range l.Nodes() {
			restart(node, stale)
		}
		allowed := observe(ctx, l, at(cart.Addr(false), "tcp", 9000))
		Expect(allowed.Call.OK).To(BeTrue(), allowed.String())
		Expect(allowed.Inbound).NotTo(BeNil(), allowed.String())
		Expect(allowed.Inbound.Record.Src.Identity).To(Equal(expect.Identity(web)), "control: its own identity is let in here")
		denied := observe(ctx, l, at(cart.Addr(false), "http", 8080))
		Expect(denied.Call.OK).To(BeFalse(), "only the administrator may: %v", denied)
		Expect(denied.Inbound.Record.Flags).To(Equal(telemetry.FlagDeny), denied.String())
		Expect(denied.Inbound.Record.Src.Identity).To(Equal(expect.Identity(web)))

		By("a server that is not the one whom the address belonged to")
		wrong := attempt(ctx, l, at(cart.Addr(true), "tcp", 9000))
		Expect(wrong.OK).To(BeFalse())
		e, err := l.WaitEntry(ctx, web.Node, wrong.Start.Add(-time.Millisecond), func(e telemetry.Entry) bool { return e.Record.Direction == telemetry.Outbound })
		Expect(err).NotTo(HaveOccurred())
		Expect(e.Record.Flags).To(Equal(telemetry.FlagTLS))
		Expect(e.Error).To(ContainSubstring("not who was expected"))

		By("a new owner whom the control plane does not know at all")
		restart(web.Node, believe(belief{"gone", "admin", web.Node, web.IPs}, belief{"cart", "cart", cart.Node, cart.IPs}))
		unknown := observe(ctx, l, at(cart.Addr(false), "http", 8080))
		Expect(unknown.Call.OK).To(BeFalse(), unknown.String())
		Expect(unknown.Outbound.Error).To(ContainSubstring("unknown source"), unknown.String())
		d, err := l.ConfigDump(ctx, web.Node)
		Expect(err).NotTo(HaveOccurred())
		for _, c := range d.Certificates {
			Expect(c.Identity).NotTo(ContainSubstring("/sa/admin"), "nobody asked for the old owner's certificate")
		}
	}, SpecTimeout(world.Budget.Spec))
})

// belief is what a control plane thinks of a pod of shop.
type belief struct {
	name, account, node string
	ips                 []netip.Addr
}

// believe is a mesh of the beliefs, in which cart serves administrators on 8080, and web on 9000.
func believe(all ...belief) string {
	var b strings.Builder
	b.WriteString("workloads:\n")
	for _, w := range all {
		var ips []string
		for _, ip := range w.ips {
			ips = append(ips, fmt.Sprintf("%q", ip))
		}
		fmt.Fprintf(&b, "- {uid: Kubernetes//Pod/shop/%s, name: %s, namespace: shop, serviceAccount: %s, node: %s, protocol: HBONE, workloadIps: [%s]}\n",
			w.name, w.name, w.account, w.node, strings.Join(ips, ", "))
	}
	b.WriteString(`policies:
- name: who
  namespace: shop
  scope: Namespace
  action: Allow
  rules:
  - - - principals: [{Exact: cluster.local/ns/shop/sa/admin}]
    - - destinationPorts: [8080]
  - - - principals: [{Exact: cluster.local/ns/shop/sa/web}]
    - - destinationPorts: [9000]
`)
	return b.String()
}
