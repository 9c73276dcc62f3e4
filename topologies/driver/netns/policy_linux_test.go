// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// A policy's rules stand before the first process of a pod that it selects, and are gone with the policy.
func testNetworkPolicy(t *testing.T, l *lab.Lab) {
	ctx := within(t)
	labels := map[string]string{"app": "guarded", "istio.io/dataplane-mode": "none"}
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "guarded"}}
	np.Spec.PodSelector.MatchLabels = map[string]string{"app": "guarded"}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "guarded", Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Command: []string{"workload", "serve", "--http", "8080"}}}},
	}
	if why := l.Capabilities().Missing(lab.CapNetworkPolicy); len(why) > 0 {
		t.Error(why)
	}
	if err := l.Apply(ctx, np, pod); err != nil {
		t.Fatal(err)
	}
	info, err := l.AwaitPod(ctx, lab.PodRef{Namespace: "shop", Name: "guarded"}, "ready", func(p lab.PodInfo) bool { return p.Ready })
	if err != nil {
		t.Fatal(err)
	}
	node := lab.Target{Node: info.Node}
	in, err := l.Inspect(ctx, node)
	if err != nil || !strings.Contains(in.Rules, "goto ingress/shop/guarded") {
		t.Errorf("the pod is ready before its rules stand: %v\n%s", err, in.Rules)
	}
	url := "http://" + info.IPs[0].String() + ":8080"
	if res, err := l.Call(ctx, web, url, workload.Options{Timeout: 300 * time.Millisecond}); err != nil || res.First().OK {
		t.Errorf("a call that no policy allows: %+v, %v", res.First(), err)
	}
	if in, err = l.Inspect(ctx, node); err != nil || len(in.Refused) != 1 || !strings.Contains(in.Refused[0], "not allowed by shop/guarded") {
		t.Errorf("refused: %q, %v", in.Refused, err)
	}
	if err := l.Delete(ctx, np); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is left of the policy", func() bool {
		in, err := l.Inspect(ctx, node)
		return err == nil && !strings.Contains(in.Rules, "networkpolicy")
	})
	if res, err := l.Call(ctx, web, url, workload.Options{}); err != nil || !res.First().OK {
		t.Errorf("control: without the policy: %+v, %v", res.First(), err)
	}
	if err := l.Delete(ctx, pod); err != nil {
		t.Error(err)
	}
}
