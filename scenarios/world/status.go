// SPDX-License-Identifier: Apache-2.0

package world

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/topologies/workload/credential"
)

// Status reads the conditions that the parts of the cluster have set on an object, of which kind, namespace and name are
// given.
func (w *World) Status(ctx context.Context, obj runtime.Object) ([]metav1.Condition, error) {
	o := obj.DeepCopyObject()
	if err := w.Get(ctx, o); err != nil {
		return nil, err
	}
	data, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	var read struct {
		Status struct {
			Conditions []struct{ Type, Status, Reason, Message string }
		}
	}
	if err := json.Unmarshal(data, &read); err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	var out []metav1.Condition
	for _, c := range read.Status.Conditions {
		out = append(out, metav1.Condition{Type: c.Type, Status: metav1.ConditionStatus(c.Status), Reason: c.Reason, Message: c.Message})
	}
	return out, nil
}

// Condition is the condition of a type that an object has; an error if it has none.
func (w *World) Condition(ctx context.Context, obj runtime.Object, conditionType string) (metav1.Condition, error) {
	conditions, err := w.Status(ctx, obj)
	for _, c := range conditions {
		if c.Type == conditionType {
			return c, nil
		}
	}
	return metav1.Condition{}, cmp.Or(err, fmt.Errorf("%s has no condition %s", objectName(obj), conditionType))
}

// MeshCredentials gives a pod what Istio's sidecars have: a token for the mesh's authority and the mesh's root. With it
// `workload cert` gets the pod's certificate.
func MeshCredentials(p *corev1.Pod) {
	p.Spec.Volumes = append(p.Spec.Volumes,
		corev1.Volume{Name: "istio-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "istio-ca", Path: "istio-token"}}},
		}}},
		corev1.Volume{Name: "istiod-ca-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "istio-ca-root-cert"},
		}}})
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].VolumeMounts = append(p.Spec.Containers[i].VolumeMounts,
			corev1.VolumeMount{Name: "istio-token", MountPath: path.Dir(credential.DefaultToken)},
			corev1.VolumeMount{Name: "istiod-ca-cert", MountPath: path.Dir(credential.DefaultRoot)})
	}
}
