// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// playing are tools that are all one shell script.
func playing(t *testing.T, script string) tools {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	return tools{kind: program, docker: program}
}

// The CNI comes once there are nodes, and before they are awaited.
func TestStartWithACNI(t *testing.T) {
	dir := t.TempDir()
	calls, applied := filepath.Join(dir, "calls"), filepath.Join(dir, "applied")
	c := &cluster{name: "lab", dir: record(dir), tools: playing(t, `echo "$*" >> `+calls+`
case "$*" in
"get nodes"*) echo lab-worker lab-control-plane ;;
*" apply "*) cat > `+applied+` ;;
esac`)}
	cni := CNI{installed: installed{Name: "mine", Manifest: "1"}, manifest: []byte(object)}
	c.CNI = cni.installed
	if err := c.start(t.Context(), nil, cni, func(string) {}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	rest := string(text)
	for _, want := range []string{
		"create cluster --name lab", "exec -i lab-control-plane kubectl --kubeconfig=/etc/kubernetes/admin.conf apply --server-side --filename=-",
		"wait --for=create", "wait --for=condition=Ready --timeout=10s node/lab-control-plane node/lab-worker", "taint nodes lab-control-plane",
	} {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("no %q, or not in order:\n%s", want, text)
		}
		rest = after
	}
	if got, err := os.ReadFile(applied); string(got) != object || err != nil {
		t.Errorf("applied %q, %v", got, err)
	}
}

func podOf(name, node string, phase corev1.PodPhase, statuses ...corev1.ContainerStatus) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "net", Name: name}, Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: phase, ContainerStatuses: statuses},
	}
}

func waitingFor(container, reason, message string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: container, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
}

func conditioned(p corev1.Pod, kind corev1.PodConditionType, status corev1.ConditionStatus, message string) corev1.Pod {
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: status, Reason: "Unschedulable", Message: message})
	return p
}

func TestWaitOf(t *testing.T) {
	initial := podOf("agent", "a", corev1.PodPending, waitingFor("agent", "PodInitializing", ""))
	initial.Status.InitContainerStatuses = []corev1.ContainerStatus{waitingFor("install", "ImagePullBackOff", "Back-off pulling image\nat length")}
	for _, c := range []struct {
		pod   corev1.Pod
		want  string // "": it waits for nothing
		pulls bool
	}{
		{conditioned(podOf("up", "a", corev1.PodRunning), corev1.PodReady, corev1.ConditionTrue, ""), "", false},
		{podOf("job", "a", corev1.PodSucceeded), "", false},
		{conditioned(podOf("dns", "", corev1.PodPending), corev1.PodScheduled, corev1.ConditionFalse, "0/1 nodes: untolerated taint {node.kubernetes.io/not-ready: }"), "", false},
		{conditioned(podOf("big", "", corev1.PodPending), corev1.PodScheduled, corev1.ConditionFalse, "Insufficient memory"), "net/big: Unschedulable: Insufficient memory", false},
		{initial, "net/agent on a: container install: ImagePullBackOff: Back-off pulling image", true},
		{podOf("agent", "a", corev1.PodPending, waitingFor("agent", "ErrImagePull", "")), "net/agent on a: container agent: ErrImagePull", true},
		{podOf("agent", "a", corev1.PodRunning, waitingFor("agent", "CrashLoopBackOff", "")), "net/agent on a: container agent: CrashLoopBackOff", false},
		{podOf("agent", "a", corev1.PodRunning), "net/agent on a: Running", false},
	} {
		w := waitOf(&c.pod)
		got := ""
		if w.reason != "" {
			got = w.String()
		}
		if got != c.want || w.pulls() != c.pulls {
			t.Errorf("%s: got %q, pulls %v, want %q, %v", c.pod.Name, got, w.pulls(), c.want, c.pulls)
		}
	}
}

// clusterWith is a cluster whose nodes are never Ready, and whose pods those are.
func clusterWith(t *testing.T, pods ...corev1.Pod) *cluster {
	t.Helper()
	text, err := json.Marshal(corev1.PodList{Items: pods})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pods.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	tools := playing(t, `case "$*" in
*" get pods "*) cat `+file+` ;;
*) echo "timed out waiting for the condition on nodes/lab-worker" >&2; exit 1 ;;
esac`)
	return &cluster{tools: tools, name: "lab", nodes: []string{"lab-worker"}, shape: shape{CNI: installed{Name: "flannel"}}}
}

// An image that nodes cannot pull ends the wait before its time, with which pods it is, why, and the cure.
func TestImagesOutOfReach(t *testing.T) {
	c := clusterWith(t, podOf("agent", "lab-worker", corev1.PodPending, waitingFor("agent", "ErrImagePull", "no such host")))
	var said []string
	err := c.awaitNetwork(t.Context(), networkBudget{round: time.Millisecond, pull: 0}, func(what string) { said = append(said, what) })
	if err == nil {
		t.Fatal("nodes are Ready")
	}
	for _, want := range []string{
		"CNI flannel: nodes are not Ready after 0 s: ", "timed out waiting for the condition on nodes/lab-worker",
		"\npods that are not ready:\n  net/agent on lab-worker: container agent: ErrImagePull: no such host\n",
		"images of the CNI flannel must be within the nodes' reach: a registry, or `kind load docker-image --name lab IMAGE`",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
	want := []string{"kind cluster lab: net/agent on lab-worker: container agent: ErrImagePull: no such host", "kind cluster lab: " + c.pullCure()}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("said (-want +got):\n%s", diff)
	}
}

// What has nothing to do with images is waited for as long as there is time, and Ctrl-C ends it.
func TestOtherWaitsLast(t *testing.T) {
	c := clusterWith(t, podOf("agent", "lab-worker", corev1.PodPending, waitingFor("agent", "ContainerCreating", "")))
	ctx, cancel := context.WithCancel(t.Context())
	rounds := 0
	err := c.awaitNetwork(ctx, networkBudget{round: time.Millisecond}, func(string) {
		rounds++
		cancel()
	})
	if !errors.Is(err, context.Canceled) || rounds != 1 {
		t.Fatalf("said %d, %v", rounds, err)
	}
	if strings.Contains(err.Error(), "kind load") || !strings.Contains(err.Error(), "net/agent on lab-worker: container agent: ContainerCreating") {
		t.Error(err)
	}
}
