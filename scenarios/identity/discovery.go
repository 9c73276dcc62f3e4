// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
	"github.com/ambientlab/ambientlab/topologies/workload/discovery"
)

const discoveryPort = 15012

// slack is how many descriptors pooled connections, and the one that asks, may take.
const slack = 8

var _ = Describe("a control plane that sends nonsense", func() {
	It("is told what is wrong, by name, and changes nothing but what is right", world.OwnLab, Label("FI-04"), func(ctx SpecContext) {
		w.Needs(lab.CapSignal)
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		web, cart, host := l.Pod("shop/web"), l.Pod("shop/cart"), l.Pod("plain/batch")
		victim := "Kubernetes//Pod/shop/" + cart.Name
		m := meshAuthority(ctx, l).server(host.Addr(false))
		cfg, err := json.Marshal(discovery.Config{
			Listen: fmt.Sprintf(":%d", discoveryPort), Cert: m.Cert, Key: m.Key, Victim: victim,
			Mesh: believe(belief{"web", "web", web.Node, web.IPs}, belief{cart.Name, "cart", cart.Node, cart.IPs}),
		})
		Expect(err).NotTo(HaveOccurred())
		server := launch(ctx, l, host.PodRef, "workload", "discovery")
		Expect(string(server.tell(cfg))).To(ContainSubstring("listening"))
		z := l.Daemon(web.Node, lab.DaemonZtunnel)
		Expect(z.Restart(ctx, fmt.Sprintf("XDS_ADDRESS=https://%s", netip.AddrPortFrom(host.Addr(false), discoveryPort)))).To(Succeed())
		Expect(z.Ready(ctx)).To(Succeed())
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(cart.Addr(false), 8080))
		Expect(observe(ctx, l, url)).To(expect.Tunnelled(), "control: what is right is in force")
		before, err := z.Status(ctx)
		Expect(err).NotTo(HaveOccurred())
		held := func(metric string) float64 {
			s, err := l.ScrapeDaemon(ctx, web.Node, lab.DaemonZtunnel)
			Expect(err).NotTo(HaveOccurred())
			return s.Sum(metric, nil)
		}
		memory, descriptors := held("process_resident_memory_bytes"), held("process_open_fds")
		Expect(memory*descriptors).To(BeNumerically(">", 0), "control: it tells both")

		ld := load(ctx, l, url, workload.Options{Interval: 20 * time.Millisecond, Timeout: world.Budget.Call})
		for _, s := range []struct {
			step  string
			nack  []string // what the client says; nil if it acknowledges
			ended bool     // or that it starts anew, since there is nothing to name
		}{
			{"good", nil, false},
			{"undecodable", []string{victim}, false},
			{"empty", []string{victim}, false},
			{"unnamed", []string{"no name"}, false},
			{"misnamed", []string{victim + "-other", `is the workload "` + victim + `"`}, false},
			{"duplicate", []string{victim, "2 times"}, false},
			{"both", []string{victim, "both there and removed"}, false},
			{"unknown-type", []string{"did not subscribe", "envoy.config.cluster"}, false},
			{"no-nonce", nil, true},
			{"garbage", nil, true},
			{"oversized", nil, true},
			{"good", nil, false},
		} {
			var r discovery.Report
			Expect(json.Unmarshal(server.tell([]byte(s.step)), &r)).To(Succeed())
			Expect(r.Ended).To(Equal(s.ended), "%+v", r)
			Expect(r.Acked).To(Equal(s.nack == nil && !s.ended), "%+v", r)
			for _, part := range s.nack {
				Expect(r.Nack).To(ContainSubstring(part), "%+v", r)
			}
			if s.ended {
				Expect(r.Held).To(Equal(3), "what it says to hold when it comes back: two workloads and a policy")
			}
			d, err := l.ConfigDump(ctx, web.Node)
			Expect(err).NotTo(HaveOccurred())
			Expect(d.Workloads).To(HaveLen(2), "after %s", s.step)
		}
		ok, failed := ld.finish()
		Expect(failed).To(BeEmpty())
		Expect(ok).To(BeNumerically(">", 0), "control: the load ran")
		after, err := z.Status(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(after.Started).To(Equal(before.Started), "it is the same process")
		for metric, most := range map[string]float64{"process_resident_memory_bytes": 1.5 * memory, "process_open_fds": descriptors + slack} {
			Eventually(held).WithArguments(metric).WithTimeout(world.Budget.Evidence).Should(BeNumerically("<=", most), "%s: nonsense leaves nothing behind", metric)
		}

		By("a removal of what is in use, which is in force")
		kept := load(ctx, l, url, workload.Options{Interval: 20 * time.Millisecond, Timeout: world.Budget.Call, KeepOpen: true})
		var r discovery.Report
		Expect(json.Unmarshal(server.tell([]byte("remove")), &r)).To(Succeed())
		Expect(r.Acked).To(BeTrue(), "%+v", r)
		_, failed = kept.finish()
		Expect(failed).To(BeEmpty(), "a connection that is there goes on, and new ones pass through")
		Expect(observe(ctx, l, url)).NotTo(expect.Tunnelled(), "control: the workload is unknown now")
	}, SpecTimeout(world.Budget.Spec))
})
