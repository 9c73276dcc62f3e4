// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"encoding/json"
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
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// shaking is unpooled for HBONE connections that an application's keeps open: PINGs more often than that, and their answers, are taken
// for a flood on one that lasts.
var shaking = []string{"POOL_UNUSED_RELEASE_TIMEOUT=1ms", "HBONE_PING_INTERVAL=25ms"}

// Upstream's integration test of a change of the authority is skipped (istio/istio#49648): its proxies take a new root over
// only when they refresh, up to half a certificate's life later. Ours watch the bundle, and the authority says who is
// behind.
var _ = Describe("a change of the mesh's root", func() {
	It("cuts nobody off if every step waits for the last", world.OwnLab, Label("ID-06"), func(ctx SpecContext) {
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: shaking}})
		Expect(err).NotTo(HaveOccurred())
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), 8080))
		tcp := fmt.Sprintf("tcp://%s", netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), 9000))
		old := held(ctx, l, "node1")
		Expect(old.roots).To(HaveLen(1))

		fresh := load(ctx, l, url, workload.Options{Interval: 40 * time.Millisecond, Timeout: world.Budget.Call})
		kept := load(ctx, l, tcp, workload.Options{Interval: 15 * time.Millisecond, Timeout: world.Budget.Call, KeepOpen: true, Size: 64})
		By("intermediate: an authority below the root, that signs from now on")
		out, err := rotate(ctx, l, "intermediate", forced(ctx, l)...)
		Expect(err).NotTo(HaveOccurred(), string(out))
		Expect(status(ctx, l).Behind).To(BeEmpty(), "the root is the same, so nobody need hurry")
		for _, step := range []struct {
			name  string
			roots int
		}{{"add", 2}, {"sign", 2}, {"drop", 1}} {
			By(step.name)
			out, err := rotate(ctx, l, step.name, forced(ctx, l)...)
			Expect(err).NotTo(HaveOccurred(), string(out))
			for _, node := range l.Nodes() {
				Expect(world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
					roots := held(ctx, l, node).roots
					return len(roots) == step.roots, fmt.Errorf("%s after %s: roots %v", node, step.name, roots)
				})).To(Succeed())
			}
			followed(ctx, l)
		}
		for name, ld := range map[string]*loading{"new connections": fresh, "a connection that is kept": kept} {
			ok, failed := ld.finish()
			Expect(failed).To(BeEmpty(), name)
			Expect(ok).To(BeNumerically(">", 10), "control: %s", name)
		}
		Expect(observe(ctx, l, url)).To(expect.Tunnelled())
		Expect(held(ctx, l, "node1").roots).NotTo(Equal(old.roots), "control: the root is another")
	}, SpecTimeout(world.Budget.Spec))

	It("cuts off who does not follow, once told to go on", world.OwnLab, Label("ID-06"), func(ctx SpecContext) {
		w.Needs(lab.CapSignal, lab.CapCAFiles)
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: unpooled}})
		Expect(err).NotTo(HaveOccurred())
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), 8080))
		out, err := rotate(ctx, l, "intermediate")
		Expect(err).NotTo(HaveOccurred(), string(out))
		By("a proxy whose bundle of roots is a copy")
		out, err = l.Output(ctx, lab.PodRef{Namespace: "istio-system", Name: "ztunnel-node2"}, "cp", "/var/run/secrets/istio/root-cert.pem", "/tmp/root.pem")
		Expect(err).NotTo(HaveOccurred(), string(out))
		z := l.Daemon("node2", lab.DaemonZtunnel)
		Expect(z.Restart(ctx, append([]string{"CA_ROOT_CA=/tmp/root.pem"}, unpooled...)...)).To(Succeed())
		Expect(z.Ready(ctx)).To(Succeed())
		Expect(observe(ctx, l, url)).To(expect.Tunnelled())
		Expect(chainLength(ctx, l, "node2")).To(Equal(2), "its new certificate leads through the intermediate")
		Expect(chainLength(ctx, l, "node1")).To(Equal(1), "and the other's does not")
		out, err = rotate(ctx, l, "add")
		Expect(err).NotTo(HaveOccurred(), string(out))
		Expect(world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
			s := status(ctx, l)
			return s.onlyBehind("istio-system/ztunnel-node2"), fmt.Errorf("behind: %v", s.Behind)
		})).To(Succeed())
		out, err = rotate(ctx, l, "sign")
		Expect(err).To(HaveOccurred(), "the step is refused: %s", out)
		Expect(err.Error()).To(ContainSubstring("certificates are of before the last step, that of istio-system/ztunnel-node2"))
		out, err = rotate(ctx, l, "sign", "--force")
		Expect(err).NotTo(HaveOccurred(), string(out))
		Expect(world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
			s := status(ctx, l)
			return s.onlyBehind("istio-system/ztunnel-node2"), fmt.Errorf("behind: %v", s.Behind)
		})).To(Succeed())
		cut := attempt(ctx, l, url)
		Expect(cut.OK).To(BeFalse(), "one side signs by a root that the other does not know")
		e, err := l.WaitEntry(ctx, "node2", cut.Start.Add(-time.Millisecond), func(e telemetry.Entry) bool { return e.Record.Flags == telemetry.FlagTLS })
		Expect(err).NotTo(HaveOccurred())
		Expect(e.Error).To(ContainSubstring("trusted root"))
	}, SpecTimeout(world.Budget.Spec))
})

// rotate has the operator's command take a step.
func rotate(ctx context.Context, l *world.World, step string, more ...string) ([]byte, error) {
	return l.Output(ctx, istiod, append([]string{"control", "ca", "rotate", step}, more...)...)
}

// forced is what the command needs of a control plane that is younger than its authority, as where a lab has taken a mesh over: it
// cannot know that nobody else is about.
func forced(ctx context.Context, l *world.World) []string {
	GinkgoHelper()
	if status(ctx, l).UnknownUntil != nil {
		return []string{"--force"}
	}
	return nil
}

// authorityStatus is what `control ca status` prints.
type authorityStatus struct {
	Version      int        `json:"version"`
	UnknownUntil *time.Time `json:"unknownUntil"`
	Behind       []struct {
		Identity, Holder string
	} `json:"behind"`
}

// onlyBehind reports whether one holder is behind, and nobody else.
func (s authorityStatus) onlyBehind(holder string) bool {
	for _, b := range s.Behind {
		if b.Holder != holder {
			return false
		}
	}
	return len(s.Behind) > 0
}

func status(ctx context.Context, l *world.World) authorityStatus {
	GinkgoHelper()
	out, err := l.Output(ctx, istiod, "control", "ca", "status")
	Expect(err).NotTo(HaveOccurred())
	var s authorityStatus
	Expect(json.Unmarshal(out, &s)).To(Succeed(), string(out))
	return s
}

// followed waits until the running control plane has taken the last step over, and nobody is behind.
func followed(ctx context.Context, l *world.World) {
	GinkgoHelper()
	Expect(world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
		s := status(ctx, l)
		if len(s.Behind) > 0 {
			return false, fmt.Errorf("behind: %v", s.Behind)
		}
		for _, node := range l.Nodes() {
			c, err := certificates(ctx, l, node)
			if err != nil || !strings.HasPrefix(c.State, "Available") {
				return false, err
			}
		}
		return true, nil
	})).To(Succeed())
}

func chainLength(ctx context.Context, l *world.World, node string) int {
	GinkgoHelper()
	c, err := certificates(ctx, l, node)
	Expect(err).NotTo(HaveOccurred())
	return len(c.CertChain)
}

// loading is a load that goes on until finish.
type loading struct {
	quit   chan struct{}
	done   chan struct{}
	ok     int             // read after done
	failed []workload.Call // read after done
	err    error           // read after done
}

// load calls again and again, as o says, a third of a second at a time.
func load(ctx SpecContext, l *world.World, url string, o workload.Options) *loading {
	ld := &loading{quit: make(chan struct{}), done: make(chan struct{})}
	o.Duration = 300 * time.Millisecond
	go func() {
		defer close(ld.done)
		for ld.err == nil {
			var res workload.Result
			res, ld.err = l.Call(ctx, l.Pod("shop/web").PodRef, url, o)
			ld.ok += res.OK
			for _, c := range res.Calls {
				if !c.OK {
					ld.failed = append(ld.failed, c)
				}
			}
			select {
			case <-ld.quit:
				return
			default:
			}
		}
	}()
	return ld
}

func (ld *loading) finish() (ok int, failed []workload.Call) {
	GinkgoHelper()
	close(ld.quit)
	<-ld.done
	Expect(ld.err).NotTo(HaveOccurred())
	return ld.ok, ld.failed
}
