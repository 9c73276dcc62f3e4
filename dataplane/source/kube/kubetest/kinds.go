// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"fmt"
	"strings"
	"testing"
)

// kind is what is needed to address objects of one kind.
type kind struct {
	Kind, Group, Version, Plural string
	Namespaced                   bool
}

var kinds = []kind{
	{"Namespace", "", "v1", "namespaces", false},
	{"Node", "", "v1", "nodes", false},
	{"Pod", "", "v1", "pods", true},
	{"Service", "", "v1", "services", true},
	{"ServiceAccount", "", "v1", "serviceaccounts", true},
	{"ConfigMap", "", "v1", "configmaps", true},
	{"Secret", "", "v1", "secrets", true},
	{"EndpointSlice", "discovery.k8s.io", "v1", "endpointslices", true},
	{"NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies", true},
	{"DaemonSet", "apps", "v1", "daemonsets", true},
	{"Lease", "coordination.k8s.io", "v1", "leases", true},
	{"TokenReview", "authentication.k8s.io", "v1", "tokenreviews", false},
	{"CustomResourceDefinition", "apiextensions.k8s.io", "v1", "customresourcedefinitions", false},
	{"ServiceEntry", "networking.istio.io", "v1", "serviceentries", true},
	{"WorkloadEntry", "networking.istio.io", "v1", "workloadentries", true},
	{"AuthorizationPolicy", "security.istio.io", "v1", "authorizationpolicies", true},
	{"PeerAuthentication", "security.istio.io", "v1", "peerauthentications", true},
}

func kindOf(t testing.TB, name string) kind {
	t.Helper()
	for _, k := range kinds {
		if k.Kind == name {
			return k
		}
	}
	t.Fatalf("kubetest knows no kind %q", name)
	return kind{}
}

func (k kind) groupVersion() string {
	if k.Group == "" {
		return k.Version
	}
	return k.Group + "/" + k.Version
}

func (k kind) custom() bool { return strings.HasSuffix(k.Group, ".istio.io") }

func (k kind) path(namespace, name string) string {
	p := "/apis/" + k.groupVersion()
	if k.Group == "" {
		p = "/api/" + k.Version
	}
	if k.Namespaced {
		p += "/namespaces/" + namespace
	}
	return p + "/" + k.Plural + "/" + name
}

// Definition is a CustomResourceDefinition of one of Istio's kinds, with a schema that keeps everything, as one document.
func Definition(t testing.TB, name string) string {
	t.Helper()
	k := kindOf(t, name)
	return fmt.Sprintf(`apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[2]s.%[1]s}
spec:
  group: %[1]s
  scope: Namespaced
  names: {kind: %[3]s, listKind: %[3]sList, plural: %[2]s, singular: %[4]s}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`, k.Group, k.Plural, k.Kind, strings.ToLower(k.Kind))
}

// Definitions are those of all of Istio's kinds that a source reads.
func Definitions(t testing.TB) string {
	t.Helper()
	var out []string
	for _, k := range kinds {
		if k.custom() {
			out = append(out, Definition(t, k.Kind))
		}
	}
	return strings.Join(out, "---\n")
}
