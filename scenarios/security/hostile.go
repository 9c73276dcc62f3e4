// SPDX-License-Identifier: Apache-2.0

package security

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
	"github.com/ambientlab/ambientlab/topologies/workload/attack"
	"github.com/ambientlab/ambientlab/topologies/workload/forge"
)

// What an attack may do to its victim: a ztunnel may grow by so much, and its other clients' calls may take so long at
// 200 per second, with the attacker on the same cores. None may fail.
const (
	growth         = 20_000 // kB
	growthHalfOpen = 55_000 // kB, with 3 000 handshakes under way
	latency        = 25 * time.Millisecond
	fullLength     = 10 * time.Second
)

var _ = Describe("a hostile peer", func() {
	// Four connections each, one kind after the other, as long as it takes to use every allowance up several times.
	It("with a certificate floods a proxy, and its other clients do not notice", world.OwnLab, Label("FI-07"), func(ctx SpecContext) {
		kinds := []string{"rapid-reset", "settings", "goaway"}
		s := besiege(ctx, kinds...)
		for _, kind := range kinds {
			s.attack(ctx, kind, 500*time.Millisecond, growth)
		}
	}, SpecTimeout(world.Budget.LongSpec))

	It("reads slowly or not at all, and its other clients do not notice", world.OwnLab, Label("FI-06"), func(ctx SpecContext) {
		kinds := []string{"slow-read", "never-read"}
		s := besiege(ctx, kinds...)
		for _, kind := range kinds {
			s.attack(ctx, kind, 700*time.Millisecond, growth)
		}
	}, SpecTimeout(world.Budget.LongSpec))

	It("without a certificate leaves handshakes half done, and its other clients do not notice", world.OwnLab, Label("SE-05"), func(ctx SpecContext) {
		s := besiege(ctx, "plain", "half-open", "http1")
		s.attack(ctx, "plain", 500*time.Millisecond, growth)
		s.attack(ctx, "half-open", time.Second, growthHalfOpen)
		s.attack(ctx, "http1", 200*time.Millisecond, growth)
	}, SpecTimeout(world.Budget.LongSpec))

	It("with a certificate but no CONNECT gets 400", Label("SE-05"), func(ctx SpecContext) {
		pod, cart := attacker(ctx, w, "asker"), w.Pod("shop/stock")
		to := netip.AddrPortFrom(cart.Addr(false), mesh.PortHBONE).String()
		ask := func(method string, fields ...forge.Field) forge.Answer {
			c := forge.ConnectCommand{CertDir: "/tmp/cert", Request: forge.Request{
				To: to, Timeout: world.Budget.Call, Fields: append([]forge.Field{{Name: ":method", Value: method}}, fields...),
			}}
			out, err := w.Output(ctx, pod.PodRef, append([]string{"workload", "connect"}, c.Args()...)...)
			Expect(err).NotTo(HaveOccurred())
			var a forge.Answer
			Expect(json.Unmarshal(out, &a)).To(Succeed())
			return a
		}
		authority := forge.Field{Name: ":authority", Value: netip.AddrPortFrom(cart.Addr(false), 8080).String()}
		for _, method := range []string{"GET", "POST", "connect"} {
			a := ask(method, forge.Field{Name: ":scheme", Value: "https"}, forge.Field{Name: ":path", Value: "/"}, authority)
			Expect(a.Status).To(Equal(http.StatusBadRequest), "%s: %+v", method, a)
		}
		Expect(ask("CONNECT", authority).Status).To(Equal(http.StatusOK), "control")
	}, SpecTimeout(world.Budget.Spec))

	It("does everything it can for ten seconds each, and calls of others take no longer", world.OwnLab, Label("FI-06", "FI-07", "SE-05", "slow"), func(ctx SpecContext) {
		kinds := append(attack.Kinds(true), attack.Kinds(false)...)
		s := besiege(ctx, kinds...)
		var table strings.Builder
		var missed []error
		for _, kind := range kinds {
			limit := growth
			if kind == "half-open" || kind == "hello" {
				limit = growthHalfOpen
			}
			d := s.endure(ctx, kind, fullLength)
			fmt.Fprintf(&table, "%-18s p99 %8s  grew %6d kB  failed %d of %d\n", kind, d.honest.LatencyP99.Round(10*time.Microsecond), d.grew, d.honest.Failed, d.honest.OK+d.honest.Failed)
			missed = append(missed, d.missed(limit))
		}
		AddReportEntry("what others noticed", table.String())
		Expect(errors.Join(missed...)).NotTo(HaveOccurred(), "%s", table.String())
	}, SpecTimeout(20*time.Minute))
})

// siege is a victim with an honest client. Each attacker is a pod of its own: the victim knows the addresses of those before,
// and would keep it waiting.
type siege struct {
	l         *world.World
	web, cart lab.PodInfo
	victim    lab.Daemon
	attackers map[string]lab.PodInfo // by the kind of their attack
}

func besiege(ctx SpecContext, kinds ...string) *siege {
	GinkgoHelper()
	l := twoNodes(ctx)
	l.Needs(lab.CapSignal)
	s := &siege{l: l, web: l.Pod("shop/web"), cart: l.Pod("shop/cart"), victim: l.Daemon("node2", lab.DaemonZtunnel), attackers: map[string]lab.PodInfo{}}
	pods, err := l.Attackers(ctx, "shop/web", kinds...)
	Expect(err).NotTo(HaveOccurred())
	for i, kind := range kinds {
		s.attackers[kind] = pods[i]
	}
	Expect(s.load(ctx, 500*time.Millisecond).Failed).To(BeZero(), "control: without an attack nothing fails")
	return s
}

// load is the honest client: 200 calls per second, each with a connection of its own.
func (s *siege) load(ctx context.Context, d time.Duration) workload.Result {
	GinkgoHelper()
	res, err := s.l.Call(ctx, s.web.PodRef, url(s.cart), workload.Options{Interval: 5 * time.Millisecond, Concurrency: 32, Duration: d, Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred())
	return res
}

// damage is what an attack did.
type damage struct {
	kind     string
	took     time.Duration
	attacked attack.Result
	honest   workload.Result
	grew     int  // kB
	another  bool // the victim is another process now
}

// missed says what is beyond the bounds.
func (d *damage) missed(limit int) error {
	var all []error
	miss := func(bad bool, format string, args ...any) {
		if bad {
			all = append(all, fmt.Errorf(d.kind+": "+format, args...))
		}
	}
	miss(d.attacked.Opened == 0, "no connection was opened")
	miss(slices.Contains(attack.Kinds(true), d.kind) && d.attacked.Frames <= 100, "no attack: %d frames", d.attacked.Frames)
	miss(d.honest.OK == 0, "no call of another client")
	miss(d.honest.Failed > 0, "%d calls of another client failed: %v", d.honest.Failed, d.honest.Errors)
	// A short attack is all beginning, and whatever else the machine does shows.
	miss(d.took >= fullLength && d.honest.LatencyP99 > latency, "p99 of another client's %d calls is %v, above %v", d.honest.OK, d.honest.LatencyP99, latency)
	miss(d.grew > limit, "the victim grew by %d kB, above %d", d.grew, limit)
	miss(d.another, "the victim is another process now")
	return errors.Join(all...)
}

// attack attacks while the honest client calls, and judges what came of it.
func (s *siege) attack(ctx SpecContext, kind string, d time.Duration, limit int) {
	GinkgoHelper()
	Expect(s.endure(ctx, kind, d).missed(limit)).NotTo(HaveOccurred())
}

// endure attacks while the honest client calls.
func (s *siege) endure(ctx SpecContext, kind string, d time.Duration) *damage {
	GinkgoHelper()
	status, err := s.victim.Status(ctx)
	Expect(err).NotTo(HaveOccurred())
	before := s.resident(ctx, status.PID)
	Expect(before).To(BeNumerically(">", 0), "control: its memory is seen")
	type outcome struct {
		res attack.Result
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		defer GinkgoRecover()
		argv := []string{"workload", "attack", kind, "--to", netip.AddrPortFrom(s.cart.Addr(false), mesh.PortHBONE).String(),
			"--cert", "/tmp/cert", "--duration", d.String()}
		out, err := s.l.Output(ctx, s.attackers[kind].PodRef, argv...)
		var o outcome
		if o.err = err; err == nil {
			o.err = json.Unmarshal(out, &o.res)
		}
		done <- o
	}()
	most := make(chan int, 1)
	stop := make(chan struct{})
	go func() { most <- s.highest(ctx, status.PID, stop) }()
	honest := s.load(ctx, d+100*time.Millisecond)
	attacked := <-done
	close(stop)
	grew := <-most - before
	Expect(attacked.err).NotTo(HaveOccurred())
	AddReportEntry(kind, fmt.Sprintf("%+v; grew %d kB; honest %d ok, %d failed, p50 %v, p99 %v, max %v", attacked.res, grew,
		honest.OK, honest.Failed, honest.LatencyP50, honest.LatencyP99, honest.LatencyMax))
	after, err := s.victim.Status(ctx)
	Expect(err).NotTo(HaveOccurred())
	return &damage{kind: kind, took: d, attacked: attacked.res, honest: honest, grew: grew, another: !after.Started.Equal(status.Started)}
}

// resident is the victim's resident memory in kB, as it says itself where its process is not one of this host's.
func (s *siege) resident(ctx context.Context, pid int) int {
	if pid != 0 {
		return rss(pid)
	}
	m, err := s.l.Scrape(ctx, s.cart.Node)
	if err != nil {
		return 0
	}
	return int(m.Sum("process_resident_memory_bytes", nil)) >> 10
}

// rss is a process's resident memory in kB.
func rss(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n
		}
	}
	return 0
}

// highest is the most that resident was until stop.
func (s *siege) highest(ctx context.Context, pid int, stop <-chan struct{}) int {
	most := 0
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		most = max(most, s.resident(ctx, pid))
		select {
		case <-tick.C:
		case <-stop:
			return most
		}
	}
}
