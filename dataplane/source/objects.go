// SPDX-License-Identifier: Apache-2.0

package source

import (
	istiov1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is what every kind here is.
type Object interface {
	runtime.Object
	metav1.Object
}

// Key names an object; Namespace is "" for kinds that have none.
type Key struct {
	Kind, Namespace, Name string
}

// String is "Kind namespace/name", or "Kind name"; "" for the zero value.
func (k Key) String() string {
	switch {
	case k == Key{}:
		return ""
	case k.Namespace == "":
		return k.Kind + " " + k.Name
	default:
		return k.Kind + " " + k.Namespace + "/" + k.Name
	}
}

// ID is the key within the kind's map: "namespace/name", or "name" for kinds without a namespace.
func (k Key) ID() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Objects is a snapshot of everything that is intended. Namespaces and Nodes are keyed by name, all others by
// "namespace/name".
type Objects struct {
	Namespaces      map[string]*corev1.Namespace
	Nodes           map[string]*corev1.Node
	Pods            map[string]*corev1.Pod
	ServiceAccounts map[string]*corev1.ServiceAccount
	Services        map[string]*corev1.Service
	EndpointSlices  map[string]*discoveryv1.EndpointSlice
	NetworkPolicies map[string]*networkingv1.NetworkPolicy
	ServiceEntries  map[string]*istiov1.ServiceEntry
	WorkloadEntries map[string]*istiov1.WorkloadEntry

	AuthorizationPolicies map[string]*securityv1.AuthorizationPolicy
	PeerAuthentications   map[string]*securityv1.PeerAuthentication
}

// With is o with the given changes; nil removes. It copies only the maps of kinds that change, and leaves out changes
// of kinds that are not known. o may be nil.
func (o *Objects) With(changes map[Key]Object) *Objects {
	next := &Objects{}
	if o != nil {
		*next = *o
	}
	copied := map[string]bool{}
	for key, obj := range changes {
		kind, ok := KindOf(key.Kind)
		if !ok {
			continue
		}
		if !copied[key.Kind] {
			copied[key.Kind] = true
			kind.clone(next)
		}
		kind.put(next, key.ID(), obj)
	}
	return next
}

// Get finds an object; nil if there is none of that key, or no such kind.
func (o *Objects) Get(k Key) Object {
	kind, ok := KindOf(k.Kind)
	if !ok {
		return nil
	}
	return kind.get(o, k.ID())
}

// Len counts the objects of all kinds.
func (o *Objects) Len() int {
	n := 0
	for _, k := range kinds {
		n += k.len(o)
	}
	return n
}
