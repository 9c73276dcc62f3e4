// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

func testApply(t *testing.T, l *lab.Lab) {
	ctx := within(t)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "late", Labels: map[string]string{"app": "late"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Command: []string{"workload", "serve", "--http", "8080"}}}},
	}
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "late"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "late"}, Ports: []corev1.ServicePort{{Name: "http", Port: 8080}}},
	}
	if err := l.Apply(ctx, pod, svc); err != nil {
		t.Fatal(err)
	}
	ref := lab.PodRef{Namespace: "shop", Name: "late"}
	info, err := l.AwaitPod(ctx, ref, "ready", func(p lab.PodInfo) bool { return p.Ready && p.Enrolled })
	if err != nil || info.Node != "node1" {
		t.Fatalf("%+v, %v", info, err)
	}
	eventually(t, "the new service answers", func() bool {
		res, err := l.Call(ctx, web, "http://late:8080", workload.Options{})
		return err == nil && res.First().OK
	})
	pod.Labels["istio.io/dataplane-mode"] = "none"
	if err := l.Apply(ctx, pod); err != nil {
		t.Fatal(err)
	}
	after, err := l.AwaitPod(ctx, ref, "out of the mesh", func(p lab.PodInfo) bool { return p.Ready && !p.Enrolled })
	if err != nil || after.UID != info.UID {
		t.Errorf("%+v, %v; want the same pod", after, err)
	}
	if err := l.Delete(ctx, pod, svc); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Find(ctx, ref); err == nil {
		t.Error("the pod is still there")
	}
	if err := l.Delete(ctx, pod, svc); err != nil {
		t.Errorf("a second Delete: %v", err)
	}
	if err := errors.Join(l.Apply(ctx, pod), l.Delete(ctx, pod)); err != nil {
		t.Errorf("a pod that is deleted while it starts: %v", err)
	}
	if err := l.Apply(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if again, err := l.AwaitPod(ctx, ref, "ready", func(p lab.PodInfo) bool { return p.Ready }); err != nil || again.UID == info.UID {
		t.Errorf("%+v, %v; want a new pod of that name", again, err)
	}
	if err := l.Delete(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if err := l.Apply(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "lost"}, Spec: corev1.PodSpec{NodeName: "node9"}}); err == nil {
		t.Error("a pod on a node that is not there was accepted")
	}
}

// A pod that is being deleted is taken away wholly, whether or not its deleter waits.
func testDeleterGone(t *testing.T, l *lab.Lab) {
	grace := int64(1)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "stubborn", Labels: map[string]string{"istio.io/dataplane-mode": "none"}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "app", Command: []string{"sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"}}},
		},
	}
	if err := l.Apply(within(t), pod); err != nil {
		t.Fatal(err)
	}
	ref := lab.PodRef{Namespace: pod.Namespace, Name: pod.Name}
	info, err := l.AwaitPod(within(t), ref, "ready", func(p lab.PodInfo) bool { return p.Ready })
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is deaf", func() bool {
		log, err := os.ReadFile(labdir.Dir(l.Dir).PodLog(ref.Namespace, ref.Name))
		return err == nil && strings.Contains(string(log), "deaf")
	})
	leases := func() (held []string) {
		for _, ip := range info.IPs {
			files, err := filepath.Glob(labdir.Dir(l.Dir).Node(info.Node, "ipam", "*", strings.ReplaceAll(ip.String(), ":", "?")))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, files...)
		}
		return held
	}
	if len(leases()) != len(info.IPs) {
		t.Fatalf("leases %v of %v", leases(), info.IPs)
	}
	ctx, cancel := context.WithTimeout(within(t), 100*time.Millisecond)
	defer cancel()
	if err := l.Delete(ctx, pod); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Delete: %v; want it given up", err)
	}
	eventually(t, "the pod is gone", func() bool { _, err := l.Find(within(t), ref); return err != nil })
	if held := leases(); len(held) > 0 {
		t.Errorf("the pod is gone, but not its leases %v", held)
	}
}

// A service that wants another's frontend gets a line in the log; the rest of the cluster goes on changing.
func testServiceConflict(t *testing.T, l *lab.Lab) {
	ctx := within(t)
	service := func(name, clusterIP string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec: corev1.ServiceSpec{
				ClusterIP: clusterIP, Selector: map[string]string{"app": "cart"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
			},
		}
	}
	first, second, other := service("first", "10.96.77.1"), service("second", "10.96.77.1"), service("other", "10.96.77.2")
	if err := l.Apply(ctx, first, second, other); err != nil {
		t.Fatal(err)
	}
	for _, ip := range []string{"10.96.77.1", "10.96.77.2"} {
		eventually(t, ip+" answers", func() bool {
			res, err := l.Call(ctx, web, "http://"+ip, workload.Options{})
			return err == nil && res.First().OK
		})
	}
	eventually(t, "the log names the second service", func() bool {
		log, err := os.ReadFile(labdir.Dir(l.Dir).Log("hold"))
		return err == nil && strings.Contains(string(log), "shop/second")
	})
	eventually(t, "the node has what comes after it", func() bool {
		in, err := l.Inspect(ctx, lab.Target{Node: "node1"})
		return err == nil && strings.Contains(in.Rules, "10.96.77.2")
	})
	if err := l.Delete(ctx, first, second, other); err != nil {
		t.Error(err)
	}
}
