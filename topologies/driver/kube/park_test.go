// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// TestOnlyIntactPodsStay: a pod that stays when a lab is parked is the next lab's, which must not see what befell it.
func TestOnlyIntactPodsStay(t *testing.T) {
	const made = "digest"
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		stays  bool
	}{
		"as it was made":            {func(*corev1.Pod) {}, true},
		"other annotations":         {func(p *corev1.Pod) { p.Annotations["ambient.istio.io/redirection"] = "enabled" }, true},
		"made otherwise":            {func(p *corev1.Pod) { p.Annotations[annotationMade] = "other" }, false},
		"by nobody that we know":    {func(p *corev1.Pod) { p.Annotations = nil }, false},
		"a container started again": {func(p *corev1.Pod) { p.Status.ContainerStatuses[0].RestartCount = 1 }, false},
		"not ready":                 {func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }, false},
		"about to end":              {func(p *corev1.Pod) { p.DeletionTimestamp = &p.CreationTimestamp }, false},
		"with a debug container":    {func(p *corev1.Pod) { p.Spec.EphemeralContainers = make([]corev1.EphemeralContainer, 1) }, false},
	} {
		p := &corev1.Pod{}
		p.Annotations = map[string]string{annotationMade: made}
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		p.Status.ContainerStatuses = make([]corev1.ContainerStatus, 1)
		c.change(p)
		if got := intact(p, made); got != c.stays {
			t.Errorf("%s: stays %v, want %v", name, got, c.stays)
		}
	}
	if intact(nil, made) {
		t.Error("one that is gone stays")
	}
}

func TestDigestsTellPodsApart(t *testing.T) {
	podOf := func(network string, change func(*corev1.Pod)) string {
		t.Helper()
		p := &corev1.Pod{}
		p.Name, p.Labels = "web", map[string]string{"app": "web"}
		change(p)
		d, err := podDigest(p, network)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	pod := func(change func(*corev1.Pod)) string { return podOf("", change) }
	first := pod(func(*corev1.Pod) {})
	if again := pod(func(*corev1.Pod) {}); again != first {
		t.Errorf("%s and %s for the same", first, again)
	}
	if other := pod(func(p *corev1.Pod) { p.Labels["app"] = "cart" }); other == first {
		t.Error("another label makes no difference")
	}
	other := pod(func(p *corev1.Pod) { p.Spec.NodeName = "node2" })
	if relabelled := changed(other, first); relabelled == first {
		t.Error("a pod of another spec with the same labels passes for the first")
	}
	if linked := podOf("narrow", func(*corev1.Pod) {}); linked == first {
		t.Error("other links make no difference")
	}
	if back := changed(changed(first, pod(func(p *corev1.Pod) { p.Labels["app"] = "cart" })), first); back != first {
		t.Errorf("%s with its labels back, want %s", back, first)
	}
	if whole, err := digest("anything"); err != nil || len(whole) > 63 {
		t.Errorf("%q is too long for a label: %v", whole, err)
	}
}

func TestKindsAreReadAsTheyAreWritten(t *testing.T) {
	kinds := kindSet{corev1.SchemeGroupVersion.WithKind("Pod"): true, {Group: "apps", Version: "v1", Kind: "Deployment"}: true,
		{Group: "security.istio.io", Version: "v1", Kind: "AuthorizationPolicy"}: true}
	const text = "AuthorizationPolicy.v1.security.istio.io Deployment.v1.apps Pod.v1."
	if got := kinds.String(); got != text {
		t.Errorf("written %q, want %q", got, text)
	}
	if diff := cmp.Diff(kinds, parseKinds(text)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := parseKinds("nonsense"); len(got) != 0 {
		t.Errorf("%v of nonsense", got)
	}
}
