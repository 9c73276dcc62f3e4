// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"errors"
	"regexp"
	"strconv"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// An agent that starts compares what pods have with what they should have. Here it does so then alone.
var atStartOnly = lab.UpOptions{DaemonEnv: map[string][]string{lab.DaemonCNIAgent: {"DRIFT_INTERVAL=0s"}}}

var _ = Describe("the rules of a captured pod, when its agent starts again,", func() {
	It("are left alone if they are right, to the last counter", world.OwnLab, Label("CN-08"), func(ctx SpecContext) {
		l, err := world.Start(ctx, "two-nodes", atStartOnly)
		Expect(err).NotTo(HaveOccurred())
		l.Needs(lab.CapInspect, lab.CapSignal)
		web, url := l.Pod("shop/web"), at(l.Pod("shop/cart"), "http", 8080)
		Expect(observe(ctx, l, "shop/web", url)).To(expect.Tunnelled(), "control: the rules have something to count")
		before := podRules(ctx, l, web)
		Expect(before.counted()).To(BeNumerically(">", 0))
		for range 2 {
			startAgain(ctx, l, web.Node)
			after := podRules(ctx, l, web)
			Expect(after.text).To(Equal(before.text))
			for i, n := range before.packets {
				Expect(after.packets[i]).To(BeNumerically(">=", n), "counter %d began anew", i)
			}
		}
		Expect(observe(ctx, l, "shop/web", url)).To(expect.Tunnelled())
	}, SpecTimeout(world.Budget.LongSpec))

	It("are repaired if they are not, and those of others left alone", world.OwnLab, Label("CN-08"), func(ctx SpecContext) {
		l, err := world.Start(ctx, "two-nodes", atStartOnly)
		Expect(err).NotTo(HaveOccurred())
		l.Needs(lab.CapInspect, lab.CapSignal, lab.CapPodCaps)
		root, url := privileged(ctx, l), at(l.Pod("shop/cart"), "http", 8080)
		whole := podRules(ctx, l, root)
		repaired := func(what string) {
			GinkgoHelper()
			Expect(podRules(ctx, l, root).text).NotTo(Equal(whole.text), "control: %s", what)
			startAgain(ctx, l, root.Node)
			Expect(podRules(ctx, l, root).text).To(Equal(whole.text), "after %s", what)
			Expect(observe(ctx, l, "shop/root", url)).To(expect.Tunnelled(), "after %s", what)
		}
		flush(ctx, l, root)
		repaired("nothing is left")
		if !nft(ctx, l, root, "add", "table", "inet", "mine") {
			AddReportEntry("rules", "the pod has no program nft: it lost all of its rules, but no single one")
			return
		}
		nft(ctx, l, root, "add", "chain", "inet", "mine", "own")
		whole = podRules(ctx, l, root)
		for what, argv := range map[string][]string{
			"rules are missing":         {"flush", "chain", "inet", "istio-ambient-nat", "istio-output"},
			"one stands before them":    {"insert", "rule", "inet", "istio-ambient-nat", "istio-output", "meta", "l4proto", "tcp", "accept"},
			"a table is missing":        {"delete", "table", "inet", "istio-ambient-mangle"},
			"there is a chain too many": {"add", "chain", "inet", "istio-ambient-nat", "another"},
		} {
			nft(ctx, l, root, argv...)
			repaired(what)
		}
	}, SpecTimeout(world.Budget.LongSpec))
})

// nft changes a pod's rules; false if the pod does not have that program.
func nft(ctx SpecContext, l *world.World, pod lab.PodInfo, argv ...string) bool {
	GinkgoHelper()
	out, err := l.Output(ctx, pod.PodRef, append([]string{"nft"}, argv...)...)
	if absent := (*lab.StartError)(nil); errors.As(err, &absent) {
		return false
	}
	Expect(err).NotTo(HaveOccurred(), "%s", out)
	return true
}

// startAgain restarts a node's agent and waits until it has done what it does first.
func startAgain(ctx SpecContext, l *world.World, node string) {
	GinkgoHelper()
	agent := l.Daemon(node, lab.DaemonCNIAgent)
	Expect(agent.Restart(ctx)).To(Succeed())
	Expect(agent.Ready(ctx)).To(Succeed())
}

// ruleset is what a namespace's rules say, and what they have counted.
type ruleset struct {
	text    string
	packets []uint64
}

func (r ruleset) counted() (n uint64) {
	for _, p := range r.packets {
		n += p
	}
	return n
}

var counter = regexp.MustCompile(`counter packets (\d+) bytes \d+`)

func podRules(ctx SpecContext, l *world.World, pod lab.PodInfo) ruleset {
	GinkgoHelper()
	i, err := l.Inspect(ctx, lab.Target{Pod: pod.PodRef})
	Expect(err).NotTo(HaveOccurred())
	r := ruleset{text: counter.ReplaceAllString(i.Rules, "counter")}
	for _, m := range counter.FindAllStringSubmatch(i.Rules, -1) {
		n, err := strconv.ParseUint(m[1], 10, 64)
		Expect(err).NotTo(HaveOccurred())
		r.packets = append(r.packets, n)
	}
	return r
}
