// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// Events say when they were last seen in one of three fields.
func TestEventsAreInOrder(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	event := func(name string, change func(e *corev1.Event)) *corev1.Event {
		e := &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Type: "Normal", Reason: "Because", Message: name + "\n",
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "web"},
		}
		change(e)
		return e
	}
	s := &stand{api: &client{core: fake.NewClientset(
		event("third", func(e *corev1.Event) { e.LastTimestamp, e.Count = metav1.NewTime(at.Add(2*time.Second)), 7 }),
		event("first", func(e *corev1.Event) { e.CreationTimestamp = metav1.NewTime(at) }),
		event("second", func(e *corev1.Event) { e.EventTime = metav1.NewMicroTime(at.Add(time.Second)) }),
	)}}
	var got string
	if err := s.collectEvents(t.Context(), func(_, _ string, content []byte) { got = string(content) }); err != nil {
		t.Fatal(err)
	}
	want := `2026-01-02T03:04:05Z Normal Pod shop/web Because: first
2026-01-02T03:04:06Z Normal Pod shop/web Because: second
2026-01-02T03:04:07Z Normal Pod shop/web Because: third (7 times)
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
