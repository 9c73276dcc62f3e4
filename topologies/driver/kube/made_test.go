// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestStockHasWhatIsAsItWasMade: what a lab takes over is applied again if anything of it is not as it was made.
func TestStockHasWhatIsAsItWasMade(t *testing.T) {
	want := func() *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apps/v1", "kind": "DaemonSet",
			"metadata": map[string]any{"namespace": "istio-system", "name": "ztunnel", "labels": map[string]any{"app": "ztunnel"}},
			"spec": map[string]any{"template": map[string]any{
				"metadata": map[string]any{"creationTimestamp": nil},
				"spec": map[string]any{"containers": []any{map[string]any{
					"name": "ztunnel", "env": []any{map[string]any{"name": "A", "value": "1"}}, "resources": map[string]any{}, "tty": false,
				}}},
			}},
		}}
		if err := sign(u); err != nil {
			t.Fatal(err)
		}
		return u
	}
	set := func(v any, path ...string) func(*unstructured.Unstructured) {
		return func(u *unstructured.Unstructured) {
			if err := unstructured.SetNestedField(u.Object, v, path...); err != nil {
				t.Fatal(err)
			}
		}
	}
	container := func(more map[string]any) []any {
		c := map[string]any{"name": "ztunnel", "env": []any{map[string]any{"name": "A", "value": "1"}}, "tty": false}
		for k, v := range more {
			c[k] = v
		}
		return []any{c}
	}
	containers := []string{"spec", "template", "spec", "containers"}
	for name, c := range map[string]struct {
		change func(*unstructured.Unstructured)
		has    bool
	}{
		"as it was made":               {func(*unstructured.Unstructured) {}, true},
		"with a default":               {set(container(map[string]any{"imagePullPolicy": "Always"}), containers...), true},
		"with an empty field left out": {set(container(nil), containers...), true},
		"with what others added":       {set("x", "metadata", "annotations", "somebody"), true},
		"with a default left out":      {set([]any{map[string]any{"name": "ztunnel", "env": []any{map[string]any{"name": "A", "value": "1"}}}}, containers...), false},
		"with another value":           {set(container(map[string]any{"tty": true}), containers...), false},
		"with a variable more":         {set(container(map[string]any{"env": []any{map[string]any{"name": "A", "value": "1"}, map[string]any{"name": "B"}}}), containers...), false},
		"without a variable":           {set(container(map[string]any{"env": []any{}}), containers...), false},
		"without its label":            {func(u *unstructured.Unstructured) { u.SetLabels(nil) }, false},
		"made otherwise":               {set("other", "metadata", "annotations", annotationMade), false},
		"applied since":                {func(u *unstructured.Unstructured) { u.SetAnnotations(nil) }, false},
		"about to go":                  {set("2026-01-01T00:00:00Z", "metadata", "deletionTimestamp"), false},
		"of another name":              {func(u *unstructured.Unstructured) { u.SetName("other") }, false},
	} {
		now := want()
		c.change(now)
		if got := (stock{"DaemonSet istio-system/" + now.GetName(): now}).has(want()); got != c.has {
			t.Errorf("%s: %v, want %v", name, got, c.has)
		}
	}
	if (stock)(nil).has(want()) {
		t.Error("nothing has it")
	}
}
