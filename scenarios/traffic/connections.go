// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// over are the paths that bytes can take between two nodes; the last is the one without any proxy, as the control.
var over = []struct {
	name, from, to string
	path           func() types.GomegaMatcher
}{
	{"over HBONE", "shop/web", "shop/stock", expect.Tunnelled},
	{"from outside the mesh", "plain/batch", "shop/stock", expect.PlainInbound},
	{"to outside the mesh", "shop/web", "plain/ledger", expect.PlainOutbound},
	{"past the mesh", "plain/batch", "plain/ledger", expect.Direct},
}

const (
	kilobyte = 1 << 10
	megabyte = 1 << 20
	gigabyte = 1 << 30
)

var _ = Describe("connections", func() {
	for _, o := range over {
		url := func(scheme string, port uint16) string {
			return fmt.Sprintf("%s://%s", scheme, at(w.Pod(o.to), false, port))
		}

		It("lets the server speak first, "+o.name, Label("TR-05"), func(ctx SpecContext) {
			obs := observe(ctx, o.from, url("tcp-first", 9001), workload.Options{})
			Expect(obs).To(o.path())
			Expect(obs.Call.FirstByte).To(BeNumerically("<", slack), "the banner waits for nobody: a proxy that looks what a client speaks would, for 5 s")
		}, SpecTimeout(world.Budget.Spec))

		It("lets the client speak first, or stay silent before it does, "+o.name, Label("TR-05"), func(ctx SpecContext) {
			Expect(observe(ctx, o.from, url("tcp", 9000), workload.Options{Size: kilobyte})).To(o.path())
			silent := observe(ctx, o.from, url("tcp", 9000), workload.Options{Silent: 500 * time.Millisecond, Size: kilobyte})
			Expect(silent).To(o.path())
			Expect(silent.Call.Latency).To(BeNumerically(">=", 500*time.Millisecond), "control: the client was silent")
		}, SpecTimeout(world.Budget.Spec))

		It("half-closes both ways and brings the tail after a FIN, "+o.name, Label("TR-06"), func(ctx SpecContext) {
			bytes := workload.Options{Size: 4 * megabyte, Download: 3 * megabyte}
			client := bytes
			client.HalfClose = true
			obs := observe(ctx, o.from, url("tcp", 9000), client)
			Expect(obs).To(o.path())
			Expect(obs.Call.BytesRecv).To(Equal(bytes.Download), "the tail after the client's FIN")

			server := bytes
			server.PeerHalfClose = true
			began := time.Now()
			res, err := w.Call(ctx, w.Pod(o.from).PodRef, url("tcp", 9000), server)
			Expect(err).NotTo(HaveOccurred())
			Expect(res.Failed).To(BeZero(), "after the server's FIN the client still sends: %v", res.First().Error)
			Expect(res.First().BytesSent).To(Equal(bytes.Size))
			expectSameIdentities(ctx, o.from, obs, began)
		}, SpecTimeout(world.Budget.Spec))

		It("carries one byte, a kilobyte and a megabyte unchanged, "+o.name, Label("TR-08"), func(ctx SpecContext) {
			for _, size := range []int64{1, kilobyte, megabyte} {
				obs := observe(ctx, o.from, url("tcp", 9000), workload.Options{Size: size})
				Expect(obs).To(o.path(), "%d bytes", size)
				expectEcho(obs, size)
			}
		}, SpecTimeout(world.Budget.Spec))

		It("carries exchange after exchange on one connection, "+o.name, Label("TR-08"), func(ctx SpecContext) {
			obs := observe(ctx, o.from, url("tcp", 9000), workload.Options{PingPong: 200, Size: 100})
			Expect(obs).To(o.path())
			Expect(obs.Call.Rounds).To(Equal(200))
		}, SpecTimeout(world.Budget.Spec))
	}

	It("carries a gigabyte over HBONE unchanged", Label("TR-08"), func(ctx SpecContext) {
		url := fmt.Sprintf("tcp://%s", at(w.Pod("shop/stock"), false, 9000))
		obs := observe(ctx, "shop/web", url, workload.Options{HalfClose: true, Size: 1, Download: gigabyte, Timeout: world.Budget.LongSpec})
		Expect(obs).To(expect.Tunnelled())
		Expect(obs.Call.BytesRecv).To(BeEquivalentTo(gigabyte), "the caller checked each byte")
		Expect(obs.Outbound.Record.BytesRecv).To(BeNumerically(">", gigabyte))
		Expect(obs.Inbound.Record.BytesSent).To(Equal(obs.Outbound.Record.BytesRecv))
	}, SpecTimeout(world.Budget.LongSpec))

	leaksNothing := func(ctx SpecContext, n int) {
		GinkgoHelper()
		from, to := w.Pod("shop/web"), w.Pod("shop/stock")
		url := fmt.Sprintf("tcp://%s", at(to, false, 9000))
		call := func(o workload.Options) workload.Result {
			GinkgoHelper()
			res, err := w.Call(ctx, from.PodRef, url, o)
			Expect(err).NotTo(HaveOccurred())
			return res
		}
		Expect(call(workload.Options{Count: 200, Concurrency: 8, Size: 10}).Failed).To(BeZero())
		before := map[string]float64{from.Node: held(ctx, from.Node), to.Node: held(ctx, to.Node)}
		res := call(workload.Options{Count: n, Concurrency: 8, Size: 10})
		Expect(res.OK).To(Equal(n), "failures: %v", res.Errors)
		for node, was := range before {
			Eventually(held).WithContext(ctx).WithArguments(node).WithTimeout(world.Budget.Evidence).
				Should(BeNumerically("<=", was+10), "descriptors of the ztunnel of %s, %v before", node, was)
			Eventually(w.OpenTunnels).WithContext(ctx).WithArguments(node).WithTimeout(world.Budget.Evidence).
				Should(BeZero(), "connections and streams that the ztunnel of %s still lists", node)
		}
	}
	It("leaks neither descriptors nor streams over three thousand short connections", Label("TR-08"), func(ctx SpecContext) {
		leaksNothing(ctx, 3_000) // three hundred times what it may keep
	}, SpecTimeout(world.Budget.LongSpec))
	It("leaks neither descriptors nor streams over ten thousand short connections", Label("TR-08", "slow"), func(ctx SpecContext) {
		leaksNothing(ctx, 10_000)
	}, SpecTimeout(world.Budget.LongSpec))

	It("reaches a server bound to the pod's address and none bound to localhost", Label("TR-10"), func(ctx SpecContext) {
		for from, path := range map[string]func() types.GomegaMatcher{"shop/web": expect.Tunnelled, "plain/batch": expect.PlainInbound} {
			to := w.Pod("shop/stock")
			Expect(observe(ctx, from, fmt.Sprintf("http://%s", at(to, false, 8091)), workload.Options{})).To(path())
			local := observe(ctx, from, fmt.Sprintf("http://%s", at(to, false, 8090)), workload.Options{Timeout: world.Budget.Call})
			Expect(local.Call.OK).To(BeFalse(), "a port bound to localhost must not be reachable from outside:\n%s", local)
			Expect(local.Inbound).NotTo(BeNil())
			Expect(local.Inbound.Error).To(ContainSubstring("refused"), local.String())
			Expect(local.Inbound.Record.Flags).To(Equal(telemetry.FlagConnect), local.String())
		}
		self := observe(ctx, "shop/web", "http://127.0.0.1:8090", workload.Options{})
		Expect(self).To(expect.Loopback(), "control: the server does listen on localhost")
	}, SpecTimeout(world.Budget.Spec))

	It("lets a pod call its own service and its own address", Label("TR-13"), func(ctx SpecContext) {
		own := observe(ctx, "shop/web", fmt.Sprintf("http://%s", at(w.Pod("shop/web"), false, 8080)), workload.Options{})
		Expect(own).To(expect.Direct(), "its own address is not captured")
		Expect(own.To.PodRef).To(Equal(w.Pod("shop/web").PodRef))
		for _, f := range families {
			w.Needs(f.need)
			service := observe(ctx, "shop/web", "http://web.shop:80", workload.Options{Family: f.num})
			Expect(service).To(expect.Tunnelled(), "through its service, the pod is a client like any other")
			Expect(service.To.PodRef).To(Equal(w.Pod("shop/web").PodRef))
		}
		plain := observe(ctx, "plain/batch", "http://batch.plain:80", workload.Options{})
		Expect(plain.Call.OK).To(BeTrue(), plain.String())
		Expect(plain).NotTo(expect.Tunnelled(), "control: outside the mesh it works without a proxy")
		Expect(plain.Metrics).To(BeEmpty())
	}, SpecTimeout(world.Budget.Spec))

	DescribeTable("passes calls to what the mesh does not know", func(ctx SpecContext, scheme string, port uint16, v4, v6 string) {
		w.Needs(lab.CapExternal)
		for _, addr := range []string{v4, v6} {
			url := fmt.Sprintf("%s://%s", scheme, hostPort(addr, port))
			obs := observe(ctx, "shop/web", url, workload.Options{})
			Expect(obs).To(expect.PlainOutbound(), url)
			Expect(obs.Outbound.Record.Dst.Addr.String()).To(Equal(hostPort(addr, port)))
			Expect(observe(ctx, "plain/batch", url, workload.Options{})).NotTo(expect.PlainOutbound(), "control: no ztunnel sees an uncaptured client")
		}
	},
		Entry("an API server", Label("TR-14"), SpecTimeout(world.Budget.Spec), "https", uint16(6443), "198.51.100.2", "fd00:198:51::2"),
		Entry("a metadata address", Label("TR-14"), SpecTimeout(world.Budget.Spec), "http", uint16(80), "169.254.169.254", "fd00:ec2::254"),
		Entry("an unknown address", Label("TR-14"), SpecTimeout(world.Budget.Spec), "http", uint16(80), "203.0.113.80", "2001:db8:113::80"),
	)

	It("leaves UDP alone", Label("TR-15"), func(ctx SpecContext) {
		for _, f := range families {
			w.Needs(f.need)
			obs := observe(ctx, "shop/web", fmt.Sprintf("udp://%s", at(w.Pod("shop/stock"), f.v6, 9002)), workload.Options{Size: 512})
			Expect(obs).To(expect.Direct(), "no ztunnel may take part")
			Expect(obs.Call.BytesRecv).To(BeEquivalentTo(512))
			tcp := observe(ctx, "shop/web", fmt.Sprintf("tcp://%s", at(w.Pod("shop/stock"), f.v6, 9000)), workload.Options{Size: 512})
			Expect(tcp).NotTo(expect.Direct(), "control: TCP between the same pods is captured")
		}
	}, SpecTimeout(world.Budget.Spec))
})

func expectEcho(obs *world.Observation, size int64) {
	GinkgoHelper()
	Expect(obs.Call.BytesSent).To(Equal(size))
	Expect(obs.Call.BytesRecv).To(Equal(size))
	Expect(obs.Call.SHA256).NotTo(BeEmpty(), "the caller checked what came back")
}

// held is how many file descriptors a node's ztunnel holds.
func held(ctx SpecContext, node string) float64 {
	GinkgoHelper()
	s, err := w.Scrape(ctx, node)
	Expect(err).NotTo(HaveOccurred())
	return s.Sum("process_open_fds", nil)
}

// expectSameIdentities: what the client's ztunnel logged since then took the path of obs, connection by connection. It
// is for calls that make more than one.
func expectSameIdentities(ctx SpecContext, from string, obs *world.Observation, since time.Time) {
	GinkgoHelper()
	if obs.Outbound == nil {
		entries, err := w.Entries(ctx, obs.From.Node, since)
		Expect(err).NotTo(HaveOccurred())
		Expect(entries).NotTo(ContainElement(HaveField("Record.Src.Name", w.Pod(from).Name)))
		return
	}
	e, err := w.WaitEntry(ctx, obs.From.Node, since, func(e telemetry.Entry) bool {
		return e.Record.Direction == telemetry.Outbound && e.Record.Src.Name == w.Pod(from).Name
	})
	Expect(err).NotTo(HaveOccurred())
	Expect(e.Record.Src.Identity).To(Equal(obs.Outbound.Record.Src.Identity))
	Expect(e.Record.Dst.Identity).To(Equal(obs.Outbound.Record.Dst.Identity))
	Expect(e.Record.HBONEAddr).To(Equal(obs.Outbound.Record.HBONEAddr))
}
