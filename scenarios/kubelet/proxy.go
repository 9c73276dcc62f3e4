// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// What ztunnel translates kube-proxy never sees, and the other way round: it matters who of them comes first, on a node whose
// rules are of another make than the mesh's (istio/ztunnel#621).
var _ = DescribeTable("services' addresses, as kube-proxy has nodes translate them,", world.OwnLab,
	func(ctx SpecContext, mode topologies.KubeProxyMode, rules string) {
		shared()
		l, err := world.StartChanged(ctx, "two-nodes", lab.UpOptions{}, func(s *topologies.Spec) { s.Clusters[0].KubeProxyMode = mode })
		if errors.Is(err, lab.ErrUnsupported) {
			Skip(err.Error())
		}
		Expect(err).NotTo(HaveOccurred())
		l.Needs(lab.CapInspect)
		const nodePort = 31090
		open := service("cart-open", func(s *corev1.Service) {
			both := corev1.IPFamilyPolicyPreferDualStack
			s.Spec.IPFamilyPolicy = &both
			s.Spec.Selector, s.Spec.Type, s.Spec.Ports[0].NodePort = map[string]string{"app": "cart"}, corev1.ServiceTypeNodePort, nodePort
		})
		Expect(l.Establish(ctx, open)).To(Succeed())
		for _, node := range l.Nodes() {
			Eventually(nodeRules).WithContext(ctx).WithArguments(l, node).WithTimeout(world.Budget.Propagation).
				Should(And(ContainSubstring(rules), ContainSubstring(strconv.Itoa(nodePort))), "control: %s has kube-proxy's rules, of this mode", node)
		}

		By("the cluster's address of a service")
		now, err := get(ctx, l, &corev1.Service{ObjectMeta: open.ObjectMeta})
		Expect(err).NotTo(HaveOccurred())
		for _, ip := range now.Spec.ClusterIPs {
			target := "http://" + net.JoinHostPort(ip, strconv.Itoa(portHTTP))
			for _, from := range []string{"shop/web", "plain/batch"} { // a node may know the service later than the proxies do
				Eventually(func(ctx SpecContext) bool { return observe(ctx, l, l.Pod(from), target).Call.OK }).
					WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "%s from %s", target, from)
			}
			Expect(observe(ctx, l, l.Pod("shop/web"), target)).To(expect.Tunnelled())
			Expect(observe(ctx, l, l.Pod("plain/batch"), target)).To(expect.PlainInbound())
		}

		By("a port of every node")
		for _, node := range l.Nodes() {
			for _, from := range []string{"shop/web", "plain/batch"} {
				throughNode(ctx, l, from, node, nodePort)
			}
		}
	},
	Entry("with iptables", Label("CN-03"), SpecTimeout(world.Budget.LongSpec), topologies.KubeProxyIPTables, "chain KUBE-NODEPORTS"),
	Entry("with nftables", Label("CN-03"), SpecTimeout(world.Budget.LongSpec), topologies.KubeProxyNFTables, "table ip kube-proxy"),
	Entry("with IPVS", Label("CN-03"), SpecTimeout(world.Budget.LongSpec), topologies.KubeProxyIPVS, "KUBE-NODE-PORT"),
)

func nodeRules(ctx SpecContext, l *world.World, node string) string {
	GinkgoHelper()
	return rules(ctx, l, lab.Target{Node: node})
}

// throughNode calls cart at a node's port. The mesh does not know that address: a captured client leaves it there, in plain text,
// and cart's ztunnel passes on what comes with a node's address as nobody's.
func throughNode(ctx SpecContext, l *world.World, from, node string, port int) {
	GinkgoHelper()
	o, err := get(ctx, l, &corev1.Node{ObjectMeta: named(node)})
	Expect(err).NotTo(HaveOccurred())
	var address string
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP && address == "" {
			address = a.Address
		}
	}
	target, cart := fmt.Sprintf("http://%s", net.JoinHostPort(address, strconv.Itoa(port))), l.Pod("shop/cart")
	began := time.Now()
	res, err := l.Call(ctx, l.Pod(from).PodRef, target, workload.Options{}) // with another source address, by which no observation joins
	Expect(err).NotTo(HaveOccurred())
	Expect(res.First().OK).To(BeTrue(), "%s from %s: %v", target, from, res.Errors)
	Expect(res.First().Seen.Workload).To(Equal(cart.Name))
	in, err := l.WaitEntry(ctx, cart.Node, began, func(e telemetry.Entry) bool {
		return e.Record.Direction == telemetry.Inbound && e.Record.Dst.Name == cart.Name && !e.Record.Start.Before(began)
	})
	Expect(err).NotTo(HaveOccurred(), "%s from %s", target, from)
	Expect(in.Record.Src.Identity.IsZero()).To(BeTrue(), "%s from %s: it has the identity %s", target, from, in.Record.Src.Identity)
	Expect(in.Record.Src.Name).To(BeElementOf("", l.Pod(from).Name), "%s from %s: it is not taken for another's", target, from)
}
