// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/wire"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

const etherHeader = 14

var _ = Describe("packets of other sizes", func() {
	It("carries large transfers where MTUs differ, and fragments nothing", world.OwnLab, Label("TR-19"), func(ctx SpecContext) {
		w.Needs(lab.CapCapture, lab.CapMTU)
		l, err := world.Start(ctx, "mixed-mtu", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		const size = megabyte / 2
		web, cart, stock := l.Pod("shop/web"), l.Pod("shop/cart"), l.Pod("shop/stock")
		batch, ledger := l.Pod("plain/batch"), l.Pod("plain/ledger")
		transfer := func(from, to string, v6 bool, o workload.Options) *world.Observation {
			GinkgoHelper()
			o.HalfClose, o.Size, o.Download = true, size, size
			obs, err := l.Observe(ctx, l.Pod(from), fmt.Sprintf("tcp://%s", at(l.Pod(to), v6, 9000)), o)
			Expect(err).NotTo(HaveOccurred(), "%v", obs)
			Expect(obs.Call.OK).To(BeTrue(), obs.String()) // the caller and the server checked every byte
			return obs
		}
		for _, f := range families {
			By("a narrow path between two nodes of 9000, " + f.name)
			c := recordNode(ctx, l, "jumbo1")
			Expect(transfer("shop/web", "shop/cart", f.v6, workload.Options{})).To(expect.Tunnelled())
			transfer("plain/batch", "plain/ledger", f.v6, workload.Options{})
			packets := c.stop(ctx)
			for _, p := range []conversation{{web, cart}, {batch, ledger}} {
				Expect(p.largest(packets, "eth0")).To(BeNumerically("~", 1400, 12), "on the wire: full packets of the path, and none larger")
				Expect(p.fragments(packets)).To(BeZero())
				Expect(tooBig(packets, p.client.Addr(f.v6))).To(BeNumerically(">", 0), "it was the router that told the senders")
			}

			By("a node of 1280, " + f.name)
			c = recordNode(ctx, l, "small")
			Expect(transfer("shop/web", "shop/stock", f.v6, workload.Options{})).To(expect.Tunnelled())
			packets = c.stop(ctx)
			Expect(conversation{web, stock}.largest(packets, "eth0")).To(BeNumerically("~", 1280, 12))
			Expect(conversation{web, stock}.fragments(packets)).To(BeZero())

			By("control: where the path is wide, so are the packets, " + f.name)
			c = recordNode(ctx, l, "jumbo1")
			transfer("plain/batch", "shop/web", f.v6, workload.Options{})
			packets = c.stop(ctx)
			Expect(conversation{batch, web}.largest(packets, "")).To(BeNumerically("~", 9000, 12))

			By("small segments, " + f.name)
			c = recordNode(ctx, l, "jumbo1")
			transfer("plain/batch", "plain/ledger", f.v6, workload.Options{MSS: 536})
			packets = c.stop(ctx)
			Expect(conversation{batch, ledger}.largest(packets, "eth0")).To(And(BeNumerically(">", 536), BeNumerically("<=", 536+60)), "both sides keep to the client's announcement")
			Expect(transfer("shop/web", "shop/stock", f.v6, workload.Options{MSS: 536})).To(expect.Tunnelled())
		}
	}, SpecTimeout(world.Budget.Spec))
})

type recording struct{ lab.Capture }

func recordNode(ctx SpecContext, l *world.World, node string) recording {
	GinkgoHelper()
	c, err := l.Capture(ctx, lab.Target{Node: node})
	Expect(err).NotTo(HaveOccurred())
	return recording{c}
}

// stop ends the recording; one that lost packets proves nothing.
func (r recording) stop(ctx SpecContext) *wire.Capture {
	GinkgoHelper()
	pcapng, drops, err := r.Stop(ctx)
	Expect(err).NotTo(HaveOccurred())
	Expect(drops).To(BeZero())
	packets, err := wire.Read(bytes.NewReader(pcapng))
	Expect(err).NotTo(HaveOccurred())
	return packets
}

// conversation is what two pods say to each other; a node says more.
type conversation struct{ client, server lab.PodInfo }

func (v conversation) has(p wire.Packet) bool {
	c, s := v.client.IPs, v.server.IPs
	from, to := p.Src.Addr(), p.Dst.Addr()
	return slices.Contains(c, from) && slices.Contains(s, to) || slices.Contains(s, from) && slices.Contains(c, to)
}

// largest is the size of its largest IP packet of TCP on an interface, or on any of the node's but loopback.
func (v conversation) largest(c *wire.Capture, on string) int {
	most := 0
	for _, p := range c.Packets() {
		if v.has(p) && p.Protocol == "tcp" && (p.Interface == on || (on == "" && p.Interface != "lo")) {
			most = max(most, len(p.Frame)-etherHeader)
		}
	}
	return most
}

func (v conversation) fragments(c *wire.Capture) (n int) {
	for _, p := range c.Packets() {
		if v.has(p) && p.Fragment {
			n++
		}
	}
	return n
}

// tooBig counts the ICMP messages to a pod that say so (RFC 792, type 3, code 4; RFC 4443, type 2).
func tooBig(c *wire.Capture, pod netip.Addr) (n int) {
	for _, p := range c.Packets() {
		if p.Protocol != "icmp" || p.Dst.Addr() != pod {
			continue
		}
		ip := p.Frame[etherHeader:]
		if pod.Is4() {
			ip = ip[4*(ip[0]&0xf):]
			if ip[0] == 3 && ip[1] == 4 {
				n++
			}
		} else if ip[40] == 2 { // without extension headers
			n++
		}
	}
	return n
}
