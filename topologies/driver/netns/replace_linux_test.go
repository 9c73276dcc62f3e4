// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// ztunnelPods are the names of the pods in istio-system, but for the control plane's.
func ztunnelPods(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	pods, err := l.Pods(within(t))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range pods {
		if p.Namespace == "istio-system" && p.Name != "istiod" {
			names = append(names, p.Name)
		}
	}
	return names
}

func TestZtunnelIsReplaced(t *testing.T) {
	binariesForTest(t)
	l := up(t, open(t, "two-pods"))
	node := l.Spec.Clusters[0].Nodes[0].Name
	zt := l.Daemon(node, lab.DaemonZtunnel)
	status := func() lab.Status {
		t.Helper()
		s, err := zt.Status(within(t))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	works := func(when string) {
		t.Helper()
		res, err := l.Call(within(t), web, "http://cart.shop", workload.Options{})
		if err != nil || !res.First().OK {
			t.Errorf("%s: a call fails: %v %v", when, err, res.First().Error)
		}
	}

	first, pods := status(), ztunnelPods(t, l)
	if err := zt.Replace(within(t)); err != nil {
		t.Fatal(err)
	}
	second, now := status(), ztunnelPods(t, l)
	if !second.Running || !second.Started.After(first.Started) {
		t.Errorf("after the replacement %+v runs, before it %+v", second, first)
	}
	if len(pods) != 1 || len(now) != 1 || slices.Equal(pods, now) {
		t.Errorf("pods were %v and are %v", pods, now)
	}
	works("replaced")

	// One that does not become ready changes nothing.
	ctx, cancel := context.WithTimeout(within(t), 2*time.Second)
	defer cancel()
	if err := zt.Replace(ctx, "XDS_ADDRESS=https://127.0.0.1:1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("replacement that cannot become ready: %v", err)
	}
	eventually(t, "nothing of it is left", func() bool { return slices.Equal(ztunnelPods(t, l), now) })
	if s := status(); !s.Started.Equal(second.Started) || !s.Running {
		t.Errorf("%+v runs, want %+v", s, second)
	}
	works("not replaced")

	if err := zt.Replace(within(t)); err != nil {
		t.Fatal("a third:", err)
	}
	works("replaced again")
	if err := l.Daemon(node, lab.DaemonCNIAgent).Replace(within(t)); err == nil {
		t.Error("an agent was replaced as if there could be two")
	}
}
