// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// kinds are what a topology may hold as raw objects: those that a lab's control plane reads.
var kinds = map[string]func() runtime.Object{
	"v1/Namespace":                         func() runtime.Object { return &corev1.Namespace{} },
	"v1/Node":                              func() runtime.Object { return &corev1.Node{} },
	"v1/Pod":                               func() runtime.Object { return &corev1.Pod{} },
	"v1/Service":                           func() runtime.Object { return &corev1.Service{} },
	"v1/ServiceAccount":                    func() runtime.Object { return &corev1.ServiceAccount{} },
	"discovery.k8s.io/v1/EndpointSlice":    func() runtime.Object { return &discoveryv1.EndpointSlice{} },
	"networking.istio.io/v1/ServiceEntry":  func() runtime.Object { return &networkingv1.ServiceEntry{} },
	"networking.istio.io/v1/WorkloadEntry": func() runtime.Object { return &networkingv1.WorkloadEntry{} },
}

// decodeObject turns the generic form of a Kubernetes object into its type; unknown fields are errors.
func decodeObject(raw map[string]any) (runtime.Object, error) {
	apiVersion, _ := raw["apiVersion"].(string)
	kind, _ := raw["kind"].(string)
	if apiVersion == "" || kind == "" {
		return nil, errors.New("want apiVersion and kind")
	}
	make, ok := kinds[apiVersion+"/"+kind]
	if !ok {
		return nil, fmt.Errorf("no kind %s/%s; known are %s", apiVersion, kind, strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
	}
	data, err := json.Marshal(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	obj := make()
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(obj); err != nil {
		return nil, fmt.Errorf("%s: %s", kind, strings.TrimPrefix(err.Error(), "json: "))
	}
	return obj, strictSpec(obj, raw["spec"])
}

// strictSpec checks the spec of Istio's kinds again, because their own decoding drops fields that it does not know.
func strictSpec(obj runtime.Object, spec any) error {
	var m proto.Message
	switch o := obj.(type) {
	case *networkingv1.ServiceEntry:
		m = proto.Clone(&o.Spec)
	case *networkingv1.WorkloadEntry:
		m = proto.Clone(&o.Spec)
	}
	if m == nil || spec == nil {
		return nil
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	proto.Reset(m)
	if err := protojson.Unmarshal(data, m); err != nil {
		_, cause, _ := strings.Cut(err.Error(), "): ")
		return fmt.Errorf("spec: %s", cause)
	}
	return nil
}
