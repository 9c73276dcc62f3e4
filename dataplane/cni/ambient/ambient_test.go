// SPDX-License-Identifier: Apache-2.0

package ambient

import (
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func TestDecide(t *testing.T) {
	mode := func(m string) map[string]string { return map[string]string{mesh.LabelDataplaneMode: m} }
	for _, tt := range []struct {
		name string
		pod  Pod
		ns   map[string]string
		want bool
	}{
		{"nobody asks", Pod{Namespace: "shop"}, nil, false},
		{"namespace asks", Pod{Namespace: "shop"}, mode("ambient"), true},
		{"pod asks", Pod{Namespace: "shop", Labels: mode("ambient")}, nil, true},
		{"pod opts out", Pod{Namespace: "shop", Labels: mode("none")}, mode("ambient"), false},
		{"pod asks, namespace opts out", Pod{Namespace: "shop", Labels: mode("ambient")}, mode("none"), true},
		{"unknown mode", Pod{Namespace: "shop", Labels: mode("sidecar")}, mode("ambient"), false},
		{"host network", Pod{Namespace: "shop", HostNetwork: true}, mode("ambient"), false},
		{"sidecar", Pod{Namespace: "shop", Annotations: map[string]string{mesh.AnnotationSidecar: "{}"}}, mode("ambient"), false},
		{"excluded namespace", Pod{Namespace: "kube-system", Labels: mode("ambient")}, nil, false},
		{"ztunnel", Pod{Namespace: SystemNamespace, Labels: map[string]string{"app": "ztunnel"}}, mode("ambient"), false},
		{"an app of that name elsewhere", Pod{Namespace: "shop", Labels: map[string]string{"app": "ztunnel"}}, mode("ambient"), true},
	} {
		if got := Decide(tt.pod, tt.ns, []string{"kube-system"}); got.Enrol != tt.want || got.Why == "" {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}
