// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

const linkDelay = 20 * time.Millisecond

// Links between nodes, to external hosts and to pods are impaired one by one, whichever way round they are named, and are as before once restored.
func TestLinksAreImpaired(t *testing.T) {
	binariesForTest(t)
	l := up(t, open(t, "three-nodes"))
	connect := func(from, url string) time.Duration {
		t.Helper()
		c := call(t, l, from, url, workload.Options{})
		if !c.OK {
			t.Fatalf("%s to %s: %s", from, url, c.Error)
		}
		return c.Connect
	}
	quick := func(from, url string) bool { // once of a few times, for the machine may have other work
		for range 50 {
			if connect(from, url) < linkDelay {
				return true
			}
		}
		return false
	}
	// On node1 and node3, without proxies; by address, for DNS would take the cable too.
	batch, ledger := "plain/batch", fmt.Sprintf("http://%s", address(t, l, "plain/ledger", false, 8080))
	for _, x := range []struct{ a, b, url, other string }{
		{"node1", "node3", ledger, "http://legacy.plain"},
		{"node3", "node1", ledger, "http://legacy.plain"},
		{"node1", "unknown", "http://203.0.113.80", ledger},
		{"node1", "plain/batch", ledger, ""},
		{"node3", "plain/ledger", ledger, "http://203.0.113.80"},
	} {
		link := l.Link(x.a, x.b)
		if !quick(batch, x.url) {
			t.Errorf("control: before %s-%s is impaired, %s is slow", x.a, x.b, x.url)
		}
		if err := link.Impair(within(t), lab.Impairment{Delay: linkDelay}, lab.Impairment{}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if took := connect(batch, x.url); took < linkDelay {
				t.Errorf("%s-%s is impaired, %s takes %s", x.a, x.b, x.url, took)
			}
		}
		if x.other != "" {
			if !quick(batch, x.other) {
				t.Errorf("control: %s-%s is impaired, and %s is slow", x.a, x.b, x.other)
			}
		}
		traffic, err := link.Traffic(within(t))
		if err != nil || traffic.There.Packets < 4 || traffic.Back.Packets < 4 {
			t.Errorf("%s-%s: traffic %+v, %v", x.a, x.b, traffic, err)
		}
		if err := link.Restore(within(t)); err != nil {
			t.Fatal(err)
		}
		if !quick(batch, x.url) {
			t.Errorf("%s-%s is restored, %s is slow", x.a, x.b, x.url)
		}
		if _, err := link.Traffic(within(t)); err == nil {
			t.Errorf("%s-%s is restored and has traffic", x.a, x.b)
		}
	}
	for _, bad := range [][2]string{{"node1", "nowhere"}, {"node1", "node1"}, {"node2", "plain/batch"}, {"node1", "plain/nobody"}} {
		if err := l.Link(bad[0], bad[1]).Impair(within(t), lab.Impairment{}, lab.Impairment{}); err == nil {
			t.Errorf("a link from %s to %s was impaired", bad[0], bad[1])
		}
	}
	if err := l.Link("node1", "node3").Impair(within(t), lab.Impairment{Loss: 2}, lab.Impairment{}); err == nil {
		t.Error("twice as many packets were lost as there are")
	}
	pod := l.Link("node1", "plain/batch")
	batchPod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "plain", Name: "batch"}}
	if err := pod.Impair(within(t), lab.Impairment{Delay: linkDelay}, lab.Impairment{}); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(within(t), batchPod); err != nil { // the cable ends with the pod
		t.Fatal(err)
	}
	if _, err := pod.Traffic(within(t)); err == nil {
		t.Error("the cable of a pod that is gone has traffic")
	}
}
