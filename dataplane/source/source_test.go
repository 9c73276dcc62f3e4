// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func meta(namespace, name string, annotations map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: annotations}
}

func TestWith(t *testing.T) {
	a, b := &corev1.Pod{ObjectMeta: meta("ns", "a", nil)}, &corev1.Pod{ObjectMeta: meta("ns", "b", nil)}
	node := &corev1.Node{ObjectMeta: meta("", "n", nil)}
	one := (*Objects)(nil).With(map[Key]Object{{"Pod", "ns", "a"}: a, {"Node", "", "n"}: node, {"Widget", "", "x"}: node})
	two := one.With(map[Key]Object{{"Pod", "ns", "a"}: nil, {"Pod", "ns", "b"}: b})
	if one.Len() != 2 || one.Pods["ns/a"] != a || one.Nodes["n"] != node {
		t.Errorf("first snapshot: %+v", one)
	}
	if two.Len() != 2 || two.Pods["ns/a"] != nil || two.Pods["ns/b"] != b || two.Nodes["n"] != node {
		t.Errorf("second snapshot: %+v", two)
	}
}

func TestMerge(t *testing.T) {
	kind, ok := KindOf("Pod")
	if !ok {
		t.Fatal("no Pod")
	}
	base := &corev1.Pod{ObjectMeta: meta("ns", "a", map[string]string{"x": "base", "y": "base"}), Status: corev1.PodStatus{Phase: corev1.PodPending, PodIP: "10.0.0.1"}}
	got := kind.Merge(base, []Object{
		&corev1.Pod{ObjectMeta: meta("ns", "a", map[string]string{"x": "first", "z": "first"}), Status: corev1.PodStatus{Phase: corev1.PodRunning}},
		&corev1.Pod{ObjectMeta: meta("ns", "a", map[string]string{"z": "second"})},
	}).(*corev1.Pod)
	if diff := cmp.Diff(map[string]string{"x": "first", "y": "base", "z": "second"}, got.Annotations); diff != "" {
		t.Error(diff)
	}
	if got.Status.Phase != corev1.PodRunning || got.Status.PodIP != "" {
		t.Errorf("status %+v: want the first part's, as a whole", got.Status)
	}
	if base.Annotations["x"] != "base" || base.Status.Phase != corev1.PodPending {
		t.Error("the base was written to")
	}
	if kind.Merge(base, nil) != Object(base) {
		t.Error("without parts, not the base itself")
	}
}

func TestEveryKindIsWhole(t *testing.T) {
	for _, k := range Kinds() {
		o := k.New()
		o.SetName("x")
		key := Key{Kind: k.Name, Name: "x"}
		if k.Namespaced {
			o.SetNamespace("ns")
			key.Namespace = "ns"
		}
		objects := (*Objects)(nil).With(map[Key]Object{key: o})
		if objects.Len() != 1 {
			t.Errorf("%s is not kept", k.Name)
		}
		if gone := objects.With(map[Key]Object{key: nil}); gone.Len() != 0 {
			t.Errorf("%s is not removed", k.Name)
		}
		k.Check(o) // of an object without a spec: must not panic
		k.Merge(o, []Object{o})
	}
}

func TestProblemText(t *testing.T) {
	err := errors.New("is wrong")
	for want, p := range map[string]Problem{
		"is wrong":                   {Err: err},
		"a.yaml: Node n: is wrong":   {File: "a.yaml", Key: Key{Kind: "Node", Name: "n"}, Err: err},
		"Pod ns/p: spec.x: is wrong": {Key: Key{"Pod", "ns", "p"}, Field: "spec.x", Err: err},
	} {
		if p.Error() != want || !errors.Is(p, err) {
			t.Errorf("%q, want %q", p.Error(), want)
		}
	}
}
