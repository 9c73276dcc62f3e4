// SPDX-License-Identifier: Apache-2.0

package world

import (
	"context"
	"fmt"

	"github.com/onsi/ginkgo/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// object finds one of the topology's objects, as a copy that may be changed and applied.
func object[T runtime.Object](w *World, match func(T) bool) T {
	ginkgo.GinkgoHelper()
	objs, err := w.Spec.Objects(w.Spec.Clusters[0].Name)
	if err != nil {
		ginkgo.Fail(err.Error())
	}
	for _, o := range objs {
		if t, ok := o.(T); ok && match(t) {
			return t
		}
	}
	var none T
	ginkgo.Fail(fmt.Sprintf("the topology %s has no such %T", w.Spec.Name, none))
	return none
}

// PodObject is the topology's Pod object "namespace/name".
func (w *World) PodObject(name string) *corev1.Pod {
	ginkgo.GinkgoHelper()
	return object(w, func(p *corev1.Pod) bool { return p.Namespace+"/"+p.Name == name })
}

// NamespaceObject is the topology's Namespace object.
func (w *World) NamespaceObject(name string) *corev1.Namespace {
	ginkgo.GinkgoHelper()
	return object(w, func(n *corev1.Namespace) bool { return n.Name == name })
}

// ClonePod is a pod like "namespace/name" under another name.
func (w *World) ClonePod(like, name string) *corev1.Pod {
	ginkgo.GinkgoHelper()
	p := w.PodObject(like)
	p.Name = name
	return p
}

// Account is a service account, which a cluster wants before the first pod of it.
func Account(namespace, name string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// PodProblem says what keeps a pod from being ready; "" if nothing is known.
func (w *World) PodProblem(ctx context.Context, ref lab.PodRef) (string, error) {
	p, err := w.Find(ctx, ref)
	return p.Problem, err
}

// WaitPod waits, within the budget for propagation, until ok accepts the pod.
func (w *World) WaitPod(ctx context.Context, ref lab.PodRef, ok func(lab.PodInfo) bool) (lab.PodInfo, error) {
	var last lab.PodInfo
	err := Wait(ctx, Budget.Propagation, func(ctx context.Context) (bool, error) {
		p, err := w.Find(ctx, ref)
		last = p
		return err == nil && ok(p), err
	})
	if err != nil {
		return last, fmt.Errorf("wait for pod %s (ready %v, enrolled %v, %q): %w", ref, last.Ready, last.Enrolled, last.Problem, err)
	}
	w.pods[ref.String()] = last
	return last, nil
}
