// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	metav1alpha1 "istio.io/api/meta/v1alpha1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// condition is one of a status, of Istio's or of Kubernetes' own form.
type condition struct {
	kind, status, reason, message string
	generation                    int64
	since                         time.Time
}

// gone reports whether there should be none.
func (c condition) gone() bool { return c.kind == "" }

func (c condition) same(d condition) bool {
	c.since, d.since = time.Time{}, time.Time{}
	return c == d
}

// find is an object's condition of ours.
func find(kind string, o source.Object) (condition, bool) {
	for _, c := range conditionsOf(o) {
		if c.kind == control.ConditionType(kind) {
			return c, true
		}
	}
	return condition{}, false
}

func conditionsOf(o source.Object) []condition {
	switch o := o.(type) {
	case *securityv1.AuthorizationPolicy:
		return istioConditions(o.Status.GetConditions())
	case *securityv1.PeerAuthentication:
		return istioConditions(o.Status.GetConditions())
	case *corev1.Service:
		out := make([]condition, 0, len(o.Status.Conditions))
		for _, c := range o.Status.Conditions {
			out = append(out, condition{c.Type, string(c.Status), c.Reason, c.Message, c.ObservedGeneration, c.LastTransitionTime.Time})
		}
		return out
	default:
		return nil
	}
}

func istioConditions(list []*metav1alpha1.IstioCondition) []condition {
	out := make([]condition, 0, len(list))
	for _, c := range list {
		var since time.Time
		if c.GetLastTransitionTime() != nil {
			since = c.GetLastTransitionTime().AsTime()
		}
		out = append(out, condition{c.GetType(), c.GetStatus(), c.GetReason(), c.GetMessage(), c.GetObservedGeneration(), since})
	}
	return out
}

// encode is what is applied to have's status so that it says want. In a custom resource the list of conditions is one
// value, so others' must be in it, and the version of the object that they are from; in a Service each condition has an
// owner of its own.
func encode(gvr schema.GroupVersionResource, key source.Key, have source.Object, want condition) ([]byte, error) {
	list := []any{}
	meta := map[string]any{"name": key.Name, "namespace": key.Namespace}
	old, _ := find(key.Kind, have)
	if gvr.Group != "" {
		meta["resourceVersion"] = have.GetResourceVersion()
		for _, c := range conditionsOf(have) {
			if c.kind != control.ConditionType(key.Kind) {
				list = append(list, c.encode(true))
			}
		}
	}
	if !want.gone() {
		if want.since = old.since; old.status != want.status || old.since.IsZero() {
			want.since = time.Now()
		}
		list = append(list, want.encode(gvr.Group != ""))
	}
	data, err := json.Marshal(map[string]any{
		"apiVersion": gvr.GroupVersion().String(), "kind": key.Kind, "metadata": meta, "status": map[string]any{"conditions": list},
	})
	if err != nil {
		return nil, fmt.Errorf("encode the condition of %s: %w", key, err)
	}
	return data, nil
}

// encode is a condition as JSON has it; Istio's has 64-bit numbers in quotes.
func (c condition) encode(istio bool) map[string]any {
	out := map[string]any{"type": c.kind, "status": c.status}
	if c.reason != "" {
		out["reason"] = c.reason
	}
	if c.message != "" || !istio {
		out["message"] = c.message
	}
	switch {
	case c.generation != 0 && istio:
		out["observedGeneration"] = strconv.FormatInt(c.generation, 10)
	case c.generation != 0:
		out["observedGeneration"] = c.generation
	}
	if !c.since.IsZero() {
		out["lastTransitionTime"] = c.since.UTC().Format(time.RFC3339)
	}
	return out
}
