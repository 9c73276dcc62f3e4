// SPDX-License-Identifier: Apache-2.0

// Package identity holds the scenarios about who is who: mutual TLS on the wire, SPIFFE identities on both ends, and
// connections that no two pods share.
package identity

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/wire"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var w = world.Shared()

// secret is looked for on the wire; it is sent as a header, so it appears as it is in plain text.
const secret = "the-quick-brown-fox-0451"

var _ = Describe("identity", func() {
	It("puts nothing but TLS 1.3 on the wire between nodes", world.OwnLab, Label("ID-01"), func(ctx SpecContext) {
		w.Needs(lab.CapCapture)
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: unpooled}}) // so that a handshake is recorded
		Expect(err).NotTo(HaveOccurred())
		from, to := l.Pod("shop/web"), l.Pod("shop/cart")
		packets := record(ctx, l, from.Node, func() {
			obs := call(ctx, l, from, fmt.Sprintf("http://%s", netip.AddrPortFrom(to.Addr(false), 8080)))
			Expect(obs).To(expect.Tunnelled())
		})
		Expect(packets.Contains([]byte(secret))).To(BeFalse(), "application bytes on the wire")
		flows := between(packets, from, to)
		Expect(flows).NotTo(BeEmpty(), "control: the wire was recorded")
		handshakes := 0
		for _, f := range flows {
			Expect(f.Dst.Port()).To(Equal(mesh.PortHBONE), "a flow that is not HBONE: %s", f)
			if !f.Opened {
				continue // a pooled connection is older than the recording: its records cannot be told apart
			}
			info, err := wire.TLS(f)
			Expect(err).NotTo(HaveOccurred())
			Expect(info.TLS13()).To(BeTrue(), "%+v", info)
			Expect(info.ALPN).To(ConsistOf("h2"))
			Expect(info.ServerName).To(BeEmpty())
			handshakes++
		}
		Expect(handshakes).To(BeNumerically(">", 0), "control: a handshake was recorded")
	}, SpecTimeout(world.Budget.Spec))

	It("shows that the recording would have seen plain text", Label("ID-01"), func(ctx SpecContext) {
		w.Needs(lab.CapCapture)
		from, to := w.Pod("plain/batch"), w.Pod("plain/ledger")
		packets := record(ctx, w, from.Node, func() {
			obs := call(ctx, w, from, fmt.Sprintf("http://%s", netip.AddrPortFrom(to.Addr(false), 8080)))
			Expect(obs).To(expect.Direct())
		})
		Expect(packets.Contains([]byte(secret))).To(BeTrue())
	}, SpecTimeout(world.Budget.Spec))

	It("names the client to the server by its service account", Label("ID-02"), func(ctx SpecContext) {
		to := w.Pod("shop/stock")
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(to.Addr(false), 8080))
		for _, name := range []string{"shop/web", "shop/mobile", "plain/optin"} {
			obs := call(ctx, w, w.Pod(name), url)
			Expect(obs).To(expect.Tunnelled())
			Expect(obs.Inbound.Record.Src.Identity.String()).To(Equal(
				fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/%s", w.Pod(name).Namespace, w.Pod(name).ServiceAccount)))
		}
		nobody := call(ctx, w, w.Pod("plain/batch"), url)
		Expect(nobody.Inbound.Record.Src.Identity.IsZero()).To(BeTrue(), "control: without capture there is no identity")
	}, SpecTimeout(world.Budget.Spec))

	It("shares no connection between pods of one identity", Label("ID-11"), func(ctx SpecContext) {
		w.Needs(lab.CapInspect)
		to := w.Pod("shop/stock")
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(to.Addr(false), 8080))
		clients := []lab.PodInfo{w.Pod("shop/cart-0"), w.Pod("shop/cart-1"), w.Pod("shop/cart-2")}
		for _, c := range clients {
			Expect(call(ctx, w, c, url)).To(expect.Tunnelled())
			Expect(call(ctx, w, c, url)).To(expect.Tunnelled())
		}
		for _, c := range clients {
			Expect(hboneSockets(ctx, c, to)).To(HaveLen(1), "two calls of %s share its one connection", c.PodRef)
		}
	}, SpecTimeout(world.Budget.Spec))
})

func call(ctx SpecContext, w *world.World, from lab.PodInfo, url string) *world.Observation {
	GinkgoHelper()
	obs, err := w.Observe(ctx, from, url, workload.Options{Header: []string{"x-secret: " + secret}})
	Expect(err).NotTo(HaveOccurred(), "%v", obs)
	return obs
}

// record captures on a node's wire while do runs. A recording that lost packets proves nothing.
func record(ctx SpecContext, w *world.World, node string, do func()) *wire.Capture {
	GinkgoHelper()
	c, err := w.Capture(ctx, lab.Target{Node: node, Filter: world.OnTheWire})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func(ctx context.Context) { _, _, _ = c.Stop(ctx) }) // a second Stop only says so
	do()
	pcapng, drops, err := c.Stop(ctx)
	Expect(err).NotTo(HaveOccurred())
	Expect(drops).To(BeZero())
	packets, err := wire.Read(bytes.NewReader(pcapng))
	Expect(err).NotTo(HaveOccurred())
	return packets
}

func between(c *wire.Capture, a, b lab.PodInfo) []*wire.Flow {
	var out []*wire.Flow
	has := func(p lab.PodInfo, addr netip.Addr) bool { return p.Addr(addr.Is6()) == addr }
	for _, f := range c.Flows() {
		if has(a, f.Src.Addr()) && has(b, f.Dst.Addr()) {
			out = append(out, f)
		}
	}
	return out
}

// hboneSockets are the established connections in a pod's namespace to another pod's HBONE port.
func hboneSockets(ctx SpecContext, from, to lab.PodInfo) []string {
	GinkgoHelper()
	i, err := w.Inspect(ctx, lab.Target{Pod: from.PodRef})
	Expect(err).NotTo(HaveOccurred())
	peer := netip.AddrPortFrom(to.Addr(false), mesh.PortHBONE).String()
	var found []string
	for line := range strings.Lines(i.Sockets) {
		if strings.Contains(line, peer) && strings.Contains(line, "ESTAB") {
			found = append(found, line)
		}
	}
	return found
}
