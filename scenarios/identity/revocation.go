// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

const crlPath = "/tmp/crl.pem"

var _ = Describe("a revoked certificate", func() {
	It("is refused and cut, on either side, and nobody else is", world.OwnLab, Label("ID-08"), func(ctx SpecContext) {
		w.Needs(lab.CapCAFiles)
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonZtunnel: {"CRL_PATH=" + crlPath}}})
		Expect(err).NotTo(HaveOccurred())
		ca := meshAuthority(ctx, l)
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), 8080))
		Expect(observe(ctx, l, url)).To(expect.Tunnelled(), "control: there are no lists yet")

		By("the client's, told to the server's proxy")
		cutAndRefused(ctx, l, "node2", ca.revoke(held(ctx, l, "node1").serial), telemetry.Inbound)
		By("lists that cannot be read, which change nothing")
		writeFile(ctx, l, ztunnelPod("node2"), crlPath, "nonsense")
		awaitCRL(ctx, l, "node2", func(c crlState) bool { return c.Error != "" && len(c.Lists) == 1 })
		Expect(attempt(ctx, l, url).OK).To(BeFalse())
		By("lists of a stranger's, and of others")
		writeFile(ctx, l, ztunnelPod("node2"), crlPath,
			strangerAuthority(ca).revoke(held(ctx, l, "node1").serial)+ca.revoke("12345"))
		awaitCRL(ctx, l, "node2", func(c crlState) bool { return c.Error == "" && len(c.Lists) == 2 })
		Expect(observe(ctx, l, url)).To(expect.Tunnelled(), "control: the right number, but not by its issuer")

		By("the server's, told to the client's proxy")
		cutAndRefused(ctx, l, "node1", ca.revoke(held(ctx, l, "node2").serial), telemetry.Outbound)
		writeFile(ctx, l, ztunnelPod("node1"), crlPath, "")
		awaitCRL(ctx, l, "node1", func(c crlState) bool { return c.Error == "" && len(c.Lists) == 0 })
		Expect(observe(ctx, l, url)).To(expect.Tunnelled(), "control: nobody is revoked any more")
	}, SpecTimeout(world.Budget.Spec))
})

func ztunnelPod(node string) lab.PodRef {
	return lab.PodRef{Namespace: "istio-system", Name: "ztunnel-" + node}
}

// cutAndRefused tells a node's proxy of a revocation while a connection lives: it must end, its record must say why, and
// the next must not come about.
func cutAndRefused(ctx SpecContext, l *world.World, node, list string, side telemetry.Direction) {
	GinkgoHelper()
	cart := l.Pod("shop/cart")
	began := time.Now()
	type outcome struct {
		res workload.Result
		err error
	}
	live := make(chan outcome, 1)
	go func() {
		res, err := l.Call(ctx, l.Pod("shop/web").PodRef, fmt.Sprintf("tcp://%s", netip.AddrPortFrom(cart.Addr(false), 9000)),
			workload.Options{PingPong: 1 << 30, Timeout: world.Budget.Spec})
		live <- outcome{res, err}
	}()
	Expect(world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
		n, err := l.OpenTunnels(ctx, node)
		return n > 0, err
	})).To(Succeed())
	revoked := time.Now()
	writeFile(ctx, l, ztunnelPod(node), crlPath, list)
	var got outcome
	Eventually(live).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(Receive(&got))
	Expect(got.err).NotTo(HaveOccurred())
	Expect(got.res.OK).To(BeZero(), "the connection was cut")
	e, err := l.WaitEntry(ctx, node, began, func(e telemetry.Entry) bool {
		return e.Record.Direction == side && e.Record.Flags == telemetry.FlagRevoked && e.Record.Start.Before(revoked)
	})
	Expect(err).NotTo(HaveOccurred())
	Expect(e.Error).To(ContainSubstring("CERT_REVOKED"))

	again := attempt(ctx, l, fmt.Sprintf("http://%s", netip.AddrPortFrom(cart.Addr(false), 8080)))
	Expect(again.OK).To(BeFalse())
	_, err = l.WaitEntry(ctx, node, again.Start.Add(-time.Millisecond), func(e telemetry.Entry) bool {
		return e.Record.Direction == side && e.Record.Flags == telemetry.FlagRevoked && e.Record.BytesSent == 0
	})
	Expect(err).NotTo(HaveOccurred())
}

// attempt is one call from web that may fail in a handshake, where each side logs what it met and nothing joins the two.
func attempt(ctx SpecContext, l *world.World, url string) workload.Call {
	GinkgoHelper()
	res, err := l.Call(ctx, l.Pod("shop/web").PodRef, url, workload.Options{Timeout: world.Budget.Call})
	Expect(err).NotTo(HaveOccurred())
	return res.First()
}

// crlState is what the config dump says of the revocation lists.
type crlState struct {
	Lists []struct {
		Revoked int `json:"revoked"`
	} `json:"lists"`
	Error string `json:"error"`
}

func awaitCRL(ctx SpecContext, l *world.World, node string, ok func(crlState) bool) {
	GinkgoHelper()
	Expect(world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
		d, err := l.ConfigDump(ctx, node)
		if err != nil {
			return false, err
		}
		raw, err := json.Marshal(d.Config)
		if err != nil {
			return false, err
		}
		var c struct {
			CRL crlState `json:"crl"`
		}
		if err := json.Unmarshal(raw, &c); err != nil {
			return false, err
		}
		return ok(c.CRL), fmt.Errorf("lists: %+v", c.CRL)
	})).To(Succeed())
}
