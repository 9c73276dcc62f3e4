// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bytes"
	"fmt"

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
			Expect(largest(packets, "eth0")).To(BeNumerically("~", 1400, 12), "on the wire: full packets of the path, and none larger")
			Expect(fragments(packets)).To(BeZero())
			Expect(icmp(packets)).To(BeNumerically(">", 0), "it was the router that told the senders")

			By("a node of 1280, " + f.name)
			c = recordNode(ctx, l, "small")
			Expect(transfer("shop/web", "shop/stock", f.v6, workload.Options{})).To(expect.Tunnelled())
			packets = c.stop(ctx)
			Expect(largest(packets, "eth0")).To(BeNumerically("~", 1280, 12))
			Expect(fragments(packets)).To(BeZero())

			By("control: where the path is wide, so are the packets, " + f.name)
			c = recordNode(ctx, l, "jumbo1")
			transfer("plain/batch", "shop/web", f.v6, workload.Options{})
			packets = c.stop(ctx)
			Expect(largest(packets, "")).To(BeNumerically("~", 9000, 12))

			By("small segments, " + f.name)
			c = recordNode(ctx, l, "jumbo1")
			transfer("plain/batch", "plain/ledger", f.v6, workload.Options{MSS: 536})
			packets = c.stop(ctx)
			Expect(largest(packets, "eth0")).To(BeNumerically("<=", 536+60), "both sides keep to the client's announcement")
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

// largest is the size of the largest IP packet of TCP on an interface, or on any of the node's but loopback.
func largest(c *wire.Capture, on string) int {
	most := 0
	for _, p := range c.Packets() {
		if p.Protocol == "tcp" && (p.Interface == on || (on == "" && p.Interface != "lo")) {
			most = max(most, len(p.Frame)-etherHeader)
		}
	}
	return most
}

func fragments(c *wire.Capture) (n int) {
	for _, p := range c.Packets() {
		if p.Fragment {
			n++
		}
	}
	return n
}

func icmp(c *wire.Capture) (n int) {
	for _, p := range c.Packets() {
		if p.Protocol == "icmp" {
			n++
		}
	}
	return n
}
