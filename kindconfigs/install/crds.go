// SPDX-License-Identifier: Apache-2.0

package install

import (
	"embed"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

//go:generate go run ./gencrds -out crds

//go:embed crds/*.yaml
var crds embed.FS

// definitions are custom resources, by name.
func definitions(which CRDs) ([]runtime.Object, error) {
	if which == CRDsNone {
		return nil, nil
	}
	files, err := crds.ReadDir("crds")
	if err != nil {
		return nil, err
	}
	var out []runtime.Object
	for _, f := range files {
		if which == CRDsIstio && !strings.HasSuffix(f.Name(), ".istio.io.yaml") {
			continue
		}
		text, err := crds.ReadFile("crds/" + f.Name())
		if err != nil {
			return nil, err
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(text, &u.Object); err != nil {
			return nil, fmt.Errorf("read definition %s: %w", f.Name(), err)
		}
		out = append(out, u)
	}
	return out, nil
}
