// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// YAML is objects as kubectl takes them: a document each, without what the cluster fills in.
func YAML(objs []runtime.Object) ([]byte, error) {
	var b bytes.Buffer
	for i, obj := range objs {
		plain, err := plain(obj)
		if err != nil {
			return nil, err
		}
		text, err := yaml.Marshal(plain)
		if err != nil {
			return nil, fmt.Errorf("encode objects: %w", err)
		}
		if i > 0 {
			b.WriteString("---\n")
		}
		b.Write(text)
	}
	return b.Bytes(), nil
}

// JSON is the same as one List.
func JSON(objs []runtime.Object) ([]byte, error) {
	items := []any{}
	for _, obj := range objs {
		plain, err := plain(obj)
		if err != nil {
			return nil, err
		}
		items = append(items, plain)
	}
	text, err := json.MarshalIndent(map[string]any{"apiVersion": "v1", "kind": "List", "items": items}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode objects: %w", err)
	}
	return append(text, '\n'), nil
}

func plain(obj runtime.Object) (map[string]any, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, fmt.Errorf("encode objects: %w", err)
	}
	delete(m, "status")
	withoutNull(m)
	if spec, ok := m["spec"].(map[string]any); ok && len(spec) == 0 {
		delete(m, "spec")
	}
	return m, nil
}

// withoutNull removes what Go's types have to say though it is nothing, such as a creationTimestamp.
func withoutNull(v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			if inner == nil {
				delete(v, name)
				continue
			}
			withoutNull(inner)
		}
	case []any:
		for _, inner := range v {
			withoutNull(inner)
		}
	}
}
