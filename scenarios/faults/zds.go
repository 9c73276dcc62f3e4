// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// outcome is what zdspeer prints of one connection.
type outcome struct {
	Attack string `json:"attack"`
	HungUp bool   `json:"hungUp"`
	Said   string `json:"said"`
}

// refusedAlone are messages that are refused, or make no difference, and do not end the conversation.
var refusedAlone = map[string]bool{"add-no-namespace": true, "add-nothing": true, "del-unknown": true}

var _ = Describe("malformed ZDS", func() {
	It("from a ztunnel is hung up on by the agent, which goes on with the others", world.OwnLab, Label("FI-05"), func(ctx SpecContext) {
		l, zt := oneNode(ctx)
		agent := l.Daemon(zt.Node, lab.DaemonCNIAgent)
		before := held(ctx, l, zt.Node, lab.DaemonCNIAgent)
		began := time.Now()
		for _, o := range peer(ctx, l, zt, "ztunnel", "all") {
			Expect(o.HungUp).To(BeTrue(), "%s: the agent stayed", o.Attack)
		}
		expectReasons(ctx, agent, began, "ztunnel did not introduce itself", "ztunnel disconnected")

		By("control: the node's own ztunnel is connected still, and is told of new pods")
		late := l.ClonePod("shop/web", "late")
		_, err := l.Join(ctx, late)
		Expect(err).NotTo(HaveOccurred())
		Expect(l.Delete(ctx, late)).To(Succeed())
		expectHeld(ctx, l, zt.Node, lab.DaemonCNIAgent, before)
	}, SpecTimeout(world.Budget.LongSpec))

	It("from an agent is hung up on by ztunnel, which goes on serving its pods", world.OwnLab, Label("FI-05"), func(ctx SpecContext) {
		l, zt := oneNode(ctx)
		agent, ztunnel := l.Daemon(zt.Node, lab.DaemonCNIAgent), l.Daemon(zt.Node, lab.DaemonZtunnel)
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(l.Pod("shop/cart").Addr(false), 8080))
		works := func(when string) {
			GinkgoHelper()
			obs, err := l.Observe(ctx, l.Pod("shop/web"), url, workload.Options{})
			Expect(err).NotTo(HaveOccurred(), "%v", obs)
			Expect(obs).To(expect.Tunnelled(), when)
		}
		works("before")
		before := held(ctx, l, zt.Node, lab.DaemonZtunnel)
		Expect(agent.Stop(ctx)).To(Succeed())
		began := time.Now()
		for _, o := range peer(ctx, l, zt, "agent", "all") {
			Expect(o.HungUp).To(Equal(!refusedAlone[o.Attack]), "%s: %+v", o.Attack, o)
			if strings.HasPrefix(o.Attack, "add-") && refusedAlone[o.Attack] {
				Expect(o.Said).NotTo(BeEmpty(), "%s is refused with a reason", o.Attack)
			}
		}
		works("after all of it, without an agent")
		expectReasons(ctx, ztunnel, began, "conversation with the CNI agent ended")

		By("control: it serves the agent that comes back")
		Expect(agent.Start(ctx)).To(Succeed())
		Expect(agent.Ready(ctx)).To(Succeed())
		Expect(ztunnel.Ready(ctx)).To(Succeed())
		works("with its agent again")
		expectHeld(ctx, l, zt.Node, lab.DaemonZtunnel, before)
	}, SpecTimeout(world.Budget.LongSpec))
})

// oneNode is a lab whose pods all have one ztunnel and one agent.
func oneNode(ctx SpecContext) (*world.World, lab.PodInfo) {
	GinkgoHelper()
	l, err := world.StartChanged(ctx, "two-nodes", lab.UpOptions{}, func(s *topologies.Spec) {
		for i := range s.Clusters[0].Workloads {
			s.Clusters[0].Workloads[i].Nodes = []string{s.Clusters[0].Nodes[0].Name}
		}
	})
	Expect(err).NotTo(HaveOccurred())
	return l, l.Now(ctx, "istio-system/ztunnel-"+l.Nodes()[0])
}

// peer runs a hostile peer where ztunnel runs, for there is the node's socket.
func peer(ctx SpecContext, l *world.World, zt lab.PodInfo, role string, attacks ...string) []outcome {
	GinkgoHelper()
	out, err := l.Output(ctx, zt.PodRef, append([]string{"zdspeer", role}, attacks...)...)
	Expect(err).NotTo(HaveOccurred(), "%s", out)
	var done []outcome
	Expect(json.Unmarshal(out, &done)).To(Succeed(), "%s", out)
	Expect(len(done)).To(BeNumerically(">", 5), "control: the attacks were made")
	return done
}

// expectReasons: the daemon said, at least once each, why it hung up.
func expectReasons(ctx SpecContext, d lab.Daemon, since time.Time, messages ...string) {
	GinkgoHelper()
	for _, message := range messages {
		Eventually(gaveReason).WithContext(ctx).WithArguments(d, since, message).WithTimeout(world.Budget.Evidence).
			Should(BeTrue(), "nothing logged %q with a protocol error", message)
	}
}

func gaveReason(ctx SpecContext, d lab.Daemon, since time.Time, message string) (bool, error) {
	r, err := d.Logs(ctx, since)
	if err != nil {
		return false, err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	for line := range strings.Lines(string(text)) {
		var e struct {
			Time       time.Time
			Msg, Error string
		}
		if json.Unmarshal([]byte(line), &e) == nil && e.Msg == message && !e.Time.Before(since) && strings.Contains(e.Error, "zds protocol error") {
			return true, nil
		}
	}
	return false, err
}
