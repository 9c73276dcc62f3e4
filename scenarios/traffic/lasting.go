// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"fmt"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/wire"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// lasting are connections that say nothing for a while, by what they speak.
var lasting = []struct {
	name string
	port uint16
	path func(idle time.Duration) string
	o    workload.Options
}{
	{"tcp", 9000, nil, workload.Options{KeepOpen: true, Count: 2}},
	{"http", 8080, nil, workload.Options{KeepOpen: true, Count: 2}},
	{"h2c", 8081, nil, workload.Options{KeepOpen: true, Count: 2}},
	{"grpc", 8082, nil, workload.Options{KeepOpen: true, Count: 2, PingPong: 2}},
	{"ws", 8080, nil, workload.Options{KeepOpen: true, Count: 2}},
	{"http", 8080, func(idle time.Duration) string { return "/wait/" + idle.String() }, workload.Options{}},
}

var _ = Describe("connections that last", func() {
	// With Envoy in the way a stream that is idle for an hour is cut; upstream's ztunnel cannot forward an application's keepalives and has its own
	// (istio/ztunnel#1699, #1337).
	DescribeTable("does not cut what is idle, and keeps it alive on the wire", world.OwnLab, Label("TR-09"),
		func(ctx SpecContext, idle, keepalive time.Duration) {
			l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: {
				"KEEPALIVE_TIME=" + keepalive.String(), "KEEPALIVE_INTERVAL=" + keepalive.String(),
			}}})
			Expect(err).NotTo(HaveOccurred())
			l.Needs(lab.CapCapture)
			c, err := l.Capture(ctx, lab.Target{Node: "node1", Filter: fmt.Sprintf("tcp port 9000 or tcp port %d", mesh.PortHBONE)})
			Expect(err).NotTo(HaveOccurred())
			waitIdle(ctx, l, idle)
			packets := recording{c}.stop(ctx)

			web, batch := l.Pod("shop/web").Addr(false), l.Pod("plain/batch").Addr(false)
			for _, port := range []uint16{mesh.PortHBONE, 9000} { // tunnels have PINGs too, every 10 s, before which a keepalive may not come
				lasted, silent := silence(packets, idle, func(p wire.Packet) bool { return p.Src.Addr() == web && p.Dst.Port() == port })
				Expect(lasted).To(BeNumerically(">", 0), "control: connections to port %d that last", port)
				Expect(silent).To(BeNumerically("<", keepalive*3/2), "the longest time without a packet of the proxy to port %d", port)
			}
			Expect(probes(packets, func(p wire.Packet) bool { return p.Src.Addr() == batch })).
				To(BeNumerically("<=", 2*(int(idle/(15*time.Second))+1)), "control: past the mesh there are only the application's own, every 15 s on each of two connections")
		},
		Entry("shortened", SpecTimeout(world.Budget.Spec), 2500*time.Millisecond, time.Second),
		Entry("for an hour", Label("slow"), SpecTimeout(time.Hour+world.Budget.LongSpec), time.Hour, 180*time.Second),
	)
})

// waitIdle opens connections of every kind on every path, all at once, and uses each again after idle.
func waitIdle(ctx SpecContext, l *world.World, idle time.Duration) {
	GinkgoHelper()
	type outcome struct {
		what string
		res  workload.Result
		err  error
	}
	var mu sync.Mutex
	var all []outcome
	var wg sync.WaitGroup
	for _, pair := range [][2]string{{"shop/web", "shop/cart"}, {"shop/web", "plain/ledger"}, {"plain/batch", "shop/cart"}, {"plain/batch", "plain/ledger"}} {
		for _, x := range lasting {
			o := x.o
			o.Timeout = idle + world.Budget.Spec
			if o.Count > 1 {
				o.Interval = idle
			}
			url := fmt.Sprintf("%s://%s", x.name, at(l.Pod(pair[1]), false, x.port))
			if x.path != nil {
				url += x.path(idle)
			}
			wg.Go(func() {
				res, err := l.Call(ctx, l.Pod(pair[0]).PodRef, url, o)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, outcome{fmt.Sprintf("%s to %s at %s", pair[0], pair[1], url), res, err})
			})
		}
	}
	wg.Wait()
	for _, o := range all {
		Expect(o.err).NotTo(HaveOccurred(), o.what)
		Expect(o.res.Failed).To(BeZero(), "%s: %s", o.what, o.res.First().Error)
		Expect(o.res.Elapsed).To(BeNumerically(">=", idle), "control: %s was idle", o.what)
		if last := o.res.Calls[len(o.res.Calls)-1]; len(o.res.Calls) > 1 {
			Expect(last.Reused).To(BeTrue(), "%s: after %s another connection had to be opened", o.what, idle)
		}
	}
}

// silence is the longest time without a packet on the connections, of packets that are counted, that lasted for idle, and how many did.
func silence(c *wire.Capture, idle time.Duration, of func(wire.Packet) bool) (lasted int, longest time.Duration) {
	type life struct {
		first, last time.Time
		gap         time.Duration
	}
	lives := map[string]*life{}
	for _, p := range c.Packets() {
		if p.Interface != "eth0" || p.Protocol != "tcp" || !of(p) {
			continue
		}
		conn := p.Src.String() + p.Dst.String()
		if lives[conn] == nil {
			lives[conn] = &life{first: p.Time, last: p.Time}
		}
		now := lives[conn]
		now.gap, now.last = max(now.gap, p.Time.Sub(now.last)), p.Time
	}
	for _, l := range lives {
		if l.last.Sub(l.first) >= idle*9/10 { // the last that was sent may not be in the recording
			lasted++
			longest = max(longest, l.gap)
		}
	}
	return lasted, longest
}

// probes counts keepalives: a segment without data that repeats the last acknowledged byte's number (RFC 9293 §3.8.4), so that its number is
// one below that of the plain ACK before it.
func probes(c *wire.Capture, of func(wire.Packet) bool) int {
	next := map[string]uint32{}
	n := 0
	for _, p := range c.Packets() {
		if p.Interface == "eth0" && p.Protocol == "tcp" && of(p) {
			conn := p.Src.String() + p.Dst.String()
			if len(p.Payload) == 0 && p.Flags == "ACK" && p.Seq == next[conn]-1 {
				n++
				continue
			}
			next[conn] = p.Seq + uint32(len(p.Payload))
			if p.Flags != "ACK" {
				next[conn]++ // SYN and FIN count
			}
		}
	}
	return n
}
