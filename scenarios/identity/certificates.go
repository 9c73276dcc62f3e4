// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// unpooled has an application's connections make HBONE connections, and thus handshakes, of their own, if they are 10 ms
// apart: whether one is idle is looked at when a PING is due.
var unpooled = []string{"POOL_UNUSED_RELEASE_TIMEOUT=1ms", "HBONE_PING_INTERVAL=5ms"}

// shortLived are certificates that end within a scenario, of an authority that is asked again without long waits.
func shortLived(ttl time.Duration) lab.UpOptions {
	return lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: append([]string{
		"SECRET_TTL=" + ttl.String(), "CERT_BACKOFF_MIN=100ms", "CERT_BACKOFF_MAX=300ms",
	}, unpooled...)}}
}

var _ = Describe("certificates", func() {
	It("are refreshed at half of their life, under load", world.OwnLab, Label("ID-04"), func(ctx SpecContext) {
		const ttl = 4 * time.Second
		l, err := world.Start(ctx, "two-nodes", shortLived(ttl))
		Expect(err).NotTo(HaveOccurred())
		refreshUnderLoad(ctx, l, ttl)
	}, SpecTimeout(world.Budget.Spec))

	It("are refreshed at half of their life, under load: two minutes", world.OwnLab, Label("ID-04", "slow"), func(ctx SpecContext) {
		const ttl = 2 * time.Minute
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: append([]string{"SECRET_TTL=" + ttl.String()}, unpooled...)}})
		Expect(err).NotTo(HaveOccurred())
		refreshUnderLoad(ctx, l, ttl)
	}, SpecTimeout(world.Budget.LongSpec))

	It("outlast their authority, and come back with it", world.LongOwnLab, Label("ID-05"), func(ctx SpecContext) {
		w.Needs(lab.CapSignal)
		const ttl = 6 * time.Second
		l, err := world.Start(ctx, "two-nodes", shortLived(ttl))
		Expect(err).NotTo(HaveOccurred())
		web, control := l.Pod("shop/web"), l.Daemon("", lab.DaemonControl)
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), 8080))

		By("an outage that is shorter than what is left of their life")
		awaitFresh(ctx, l, ttl*2/3)
		Expect(control.Stop(ctx)).To(Succeed())
		first := held(ctx, l, "node1")
		Expect(observe(ctx, l, url)).To(expect.Tunnelled())
		Expect(held(ctx, l, "node1").serial).To(Equal(first.serial), "control: nobody signed meanwhile")

		By("one that is longer")
		for _, node := range l.Nodes() {
			awaitState(ctx, l, node, "Unavailable: ")
		}
		obs := observe(ctx, l, url)
		Expect(obs.Call.OK).To(BeFalse(), obs.String())
		Expect(obs.Outbound).NotTo(BeNil(), obs.String())
		Expect(obs.Outbound.Record.Flags).To(Equal(telemetry.FlagIdentity), obs.String())
		Expect(obs.Outbound.Error).To(ContainSubstring("certificate of " + expect.Identity(web).String()))
		Expect(obs.Metrics.Sum(world.Failed, map[string]string{"response_flags": telemetry.FlagIdentity})).To(Equal(1.0))

		By("its end, which is noticed")
		Expect(control.Start(ctx)).To(Succeed())
		Expect(control.Ready(ctx)).To(Succeed())
		for _, node := range l.Nodes() {
			awaitState(ctx, l, node, "Available")
		}
		Expect(observe(ctx, l, url)).To(expect.Tunnelled())
	}, SpecTimeout(world.Budget.Spec))
})

// refreshUnderLoad runs a load that makes a handshake with every call for longer than a certificate lives.
func refreshUnderLoad(ctx SpecContext, l *world.World, ttl time.Duration) {
	GinkgoHelper()
	url := fmt.Sprintf("http://%s", netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), 8080))
	first := map[string]certificate{}
	for _, node := range l.Nodes() {
		first[node] = held(ctx, l, node)
	}
	began := time.Now()
	res, err := l.Call(ctx, l.Pod("shop/web").PodRef, url, workload.Options{Interval: 20 * time.Millisecond, Duration: ttl * 11 / 10, Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred())
	Expect(res.Failed).To(BeZero(), "%v %v", res.Errors, res.Calls)
	Expect(res.OK).To(BeNumerically(">", 20), "control: the load ran")
	for node, old := range first {
		now := held(ctx, l, node)
		Expect(now.serial).NotTo(Equal(old.serial), "%s: the certificate is another", node)
		Expect(now.until).To(BeTemporally(">", old.until))
		Expect(time.Now()).To(BeTemporally(">", old.until), "control: %s: the first would have ended by now, %s after the start", node, time.Since(began))
	}
}

// certificate is the one that a node's ztunnel holds for the pod of shop on it.
type certificate struct {
	serial      string
	from, until time.Time
	state       string
	roots       []string // serial numbers
}

// identityOn is the identity of the pod of shop on a node of two-nodes.
func identityOn(l *world.World, node string) string {
	for _, name := range []string{"shop/web", "shop/cart"} {
		if p := l.Pod(name); p.Node == node {
			return expect.Identity(p).String()
		}
	}
	return ""
}

func certificates(ctx context.Context, l *world.World, node string) (admin.Certificates, error) {
	d, err := l.ConfigDump(ctx, node)
	if err != nil {
		return admin.Certificates{}, err
	}
	id := identityOn(l, node)
	for _, c := range d.Certificates {
		if c.Identity == id {
			return c, nil
		}
	}
	return admin.Certificates{}, fmt.Errorf("%s holds nothing for %s", node, id)
}

func held(ctx context.Context, l *world.World, node string) certificate {
	GinkgoHelper()
	var c certificate
	Expect(world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
		d, err := certificates(ctx, l, node)
		if err != nil || len(d.CertChain) == 0 {
			return false, err
		}
		c = certificate{serial: d.CertChain[0].SerialNumber, state: d.State}
		for _, r := range d.RootCerts {
			c.roots = append(c.roots, r.SerialNumber)
		}
		if c.from, err = time.Parse(time.RFC3339, d.CertChain[0].ValidFrom); err != nil {
			return false, err
		}
		c.until, err = time.Parse(time.RFC3339, d.CertChain[0].ExpirationTime)
		return err == nil, err
	})).To(Succeed())
	return c
}

// awaitFresh waits until both nodes' certificates have that long to live.
func awaitFresh(ctx context.Context, l *world.World, left time.Duration) {
	GinkgoHelper()
	Expect(world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
		for _, node := range l.Nodes() {
			if time.Until(held(ctx, l, node).until) < left {
				return false, nil
			}
		}
		return true, nil
	})).To(Succeed())
}

func awaitState(ctx context.Context, l *world.World, node, prefix string) {
	GinkgoHelper()
	Expect(world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
		c, err := certificates(ctx, l, node)
		return err == nil && strings.HasPrefix(c.State, prefix), fmt.Errorf("%s is %q: %w", c.Identity, c.State, err)
	})).To(Succeed())
}

// observe is one call from web, and all that is known of it.
func observe(ctx SpecContext, l *world.World, url string) *world.Observation {
	GinkgoHelper()
	obs, err := l.Observe(ctx, l.Pod("shop/web"), url, workload.Options{Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred(), "%v", obs)
	return obs
}
