// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestProblemOfAPod: what people are told when a lab does not come up.
func TestProblemOfAPod(t *testing.T) {
	now := metav1.Now()
	container := func(s corev1.ContainerState) corev1.PodStatus {
		return corev1.PodStatus{StartTime: &now, ContainerStatuses: []corev1.ContainerStatus{{Name: "app", State: s}}}
	}
	for want, p := range map[string]*corev1.Pod{
		"kubelet on node n1 says nothing of it": {Spec: corev1.PodSpec{NodeName: "n1"}},
		"no node has room": {Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "no node has room"},
		}}},
		"container app: ErrImagePull: not found": {Status: container(corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "not found"}})},
		"container app ended: exit code 1":       {Status: container(corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1}})},
	} {
		if got := (&podWatch{}).problem(p); !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := (&podWatch{}).problem(&corev1.Pod{Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{StartTime: &now}}); got != "" {
		t.Errorf("of one that has begun: %q", got)
	}
}
