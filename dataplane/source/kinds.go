// SPDX-License-Identifier: Apache-2.0

package source

import (
	"maps"
	"reflect"
	"slices"

	metav1alpha1 "istio.io/api/meta/v1alpha1"
	istiov1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// Kind is what a back end must know about one kind of object.
type Kind struct {
	Name       string
	Versions   []string // values of apiVersion; their documents are read alike
	Namespaced bool

	// New makes an empty object to decode into.
	New func() Object
	// Check names every field that has a value which control cannot work with.
	Check func(Object) []FieldError

	status func(dst, src Object) // copies a status that is not empty
	clone  func(*Objects)
	put    func(o *Objects, id string, obj Object)
	get    func(o *Objects, id string) Object // nil if it is not there
	len    func(*Objects) int
}

var (
	istioNetworking = []string{"networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"}
	istioSecurity   = []string{"security.istio.io/v1", "security.istio.io/v1beta1"}
)

// A new kind is one row here, one map in Objects and its checks.
var kinds = []Kind{
	row("Namespace", false, func(o *Objects) *map[string]*corev1.Namespace { return &o.Namespaces },
		nil, func(d, s *corev1.Namespace) { assign(&d.Status, s.Status) }, "v1"),
	row("Node", false, func(o *Objects) *map[string]*corev1.Node { return &o.Nodes },
		nil, func(d, s *corev1.Node) { assign(&d.Status, s.Status) }, "v1"),
	row("Pod", true, func(o *Objects) *map[string]*corev1.Pod { return &o.Pods },
		checkPod, func(d, s *corev1.Pod) { assign(&d.Status, s.Status) }, "v1"),
	row("ServiceAccount", true, func(o *Objects) *map[string]*corev1.ServiceAccount { return &o.ServiceAccounts },
		nil, nil, "v1"),
	row("Service", true, func(o *Objects) *map[string]*corev1.Service { return &o.Services },
		checkService, func(d, s *corev1.Service) { assign(&d.Status, s.Status) }, "v1"),
	row("EndpointSlice", true, func(o *Objects) *map[string]*discoveryv1.EndpointSlice { return &o.EndpointSlices },
		checkEndpointSlice, nil, "discovery.k8s.io/v1"),
	row("NetworkPolicy", true, func(o *Objects) *map[string]*networkingv1.NetworkPolicy { return &o.NetworkPolicies },
		checkNetworkPolicy, nil, "networking.k8s.io/v1"),
	row("ServiceEntry", true, func(o *Objects) *map[string]*istiov1.ServiceEntry { return &o.ServiceEntries },
		checkServiceEntry, func(d, s *istiov1.ServiceEntry) {
			if len(s.Status.Addresses)+len(s.Status.Conditions) > 0 {
				s.Status.DeepCopyInto(&d.Status)
			}
		}, istioNetworking...),
	row("WorkloadEntry", true, func(o *Objects) *map[string]*istiov1.WorkloadEntry { return &o.WorkloadEntries },
		checkWorkloadEntry, func(d, s *istiov1.WorkloadEntry) {
			if len(s.Status.Conditions) > 0 {
				s.Status.DeepCopyInto(&d.Status)
			}
		}, istioNetworking...),
	row("AuthorizationPolicy", true, func(o *Objects) *map[string]*securityv1.AuthorizationPolicy { return &o.AuthorizationPolicies },
		checkAuthorizationPolicy, func(d, s *securityv1.AuthorizationPolicy) { assignIstio(&d.Status, &s.Status) }, istioSecurity...),
	row("PeerAuthentication", true, func(o *Objects) *map[string]*securityv1.PeerAuthentication { return &o.PeerAuthentications },
		checkPeerAuthentication, func(d, s *securityv1.PeerAuthentication) { assignIstio(&d.Status, &s.Status) }, istioSecurity...),
}

// Kinds lists every kind that a source reads.
func Kinds() []Kind { return slices.Clone(kinds) }

// KindOf finds a kind by its name.
func KindOf(name string) (Kind, bool) {
	for _, k := range kinds {
		if k.Name == name {
			return k, true
		}
	}
	return Kind{}, false
}

// Merge is base with the annotations and the status that partials add, later ones winning. Annotations are merged, a
// status that is not empty replaces the whole status.
func (k Kind) Merge(base Object, partials []Object) Object {
	if len(partials) == 0 {
		return base
	}
	merged := base.DeepCopyObject().(Object)
	annotations := map[string]string{}
	maps.Copy(annotations, base.GetAnnotations())
	for _, p := range partials {
		maps.Copy(annotations, p.GetAnnotations())
		if k.status != nil {
			k.status(merged, p)
		}
	}
	if len(annotations) > 0 {
		merged.SetAnnotations(annotations)
	}
	return merged
}

func assign[T any](dst *T, src T) {
	if !reflect.ValueOf(&src).Elem().IsZero() {
		*dst = src
	}
}

// assignIstio copies a status of Istio's, which is a message that must not be copied by value.
func assignIstio(dst, src *metav1alpha1.IstioStatus) {
	if len(src.GetConditions()) > 0 {
		src.DeepCopyInto(dst)
	}
}

func row[T any, P interface {
	*T
	Object
}](name string, namespaced bool, table func(*Objects) *map[string]P, check func(P) []FieldError, status func(dst, src P), versions ...string,
) Kind {
	k := Kind{
		Name: name, Versions: versions, Namespaced: namespaced,
		New:   func() Object { return P(new(T)) },
		Check: func(o Object) []FieldError { return checkMeta(o, namespaced) },
		clone: func(o *Objects) {
			t := table(o)
			*t = maps.Clone(*t)
			if *t == nil {
				*t = map[string]P{}
			}
		},
		put: func(o *Objects, id string, obj Object) {
			if p, ok := obj.(P); ok && p != nil {
				(*table(o))[id] = p
				return
			}
			delete(*table(o), id)
		},
		get: func(o *Objects, id string) Object {
			if p := (*table(o))[id]; p != nil {
				return p
			}
			return nil
		},
		len: func(o *Objects) int { return len(*table(o)) },
	}
	if check != nil {
		k.Check = func(o Object) []FieldError { return append(checkMeta(o, namespaced), check(o.(P))...) }
	}
	if status != nil {
		k.status = func(dst, src Object) { status(dst.(P), src.(P)) }
	}
	return k
}
