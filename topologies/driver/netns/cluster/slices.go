// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// managedBy marks the slices that Slices makes; all others are somebody else's.
const managedBy = "endpointslice-controller.k8s.io"

// Managed reports whether a slice is one that Slices makes.
func Managed(s *discoveryv1.EndpointSlice) bool {
	return s.Labels[discoveryv1.LabelManagedBy] == managedBy
}

// Slices are the endpoint slices of every service that has a selector: one per service and address family, with one
// endpoint per pod that has an address of it, sorted. Pods must carry their status. Equal objects give equal slices.
func Slices(o *source.Objects) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, svc := range sorted(o.Services) {
		if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		pods := selected(o, svc)
		for _, family := range families(svc, pods) {
			out = append(out, slice(svc, pods, family))
		}
	}
	return out
}

// selected are the service's pods, those that are not ready too.
func selected(o *source.Objects, svc *corev1.Service) []*corev1.Pod {
	sel := labels.SelectorFromSet(svc.Spec.Selector)
	var out []*corev1.Pod
	for _, p := range sorted(o.Pods) {
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		if p.Namespace == svc.Namespace && !ended && len(p.Status.PodIPs) > 0 && sel.Matches(labels.Set(p.Labels)) {
			out = append(out, p)
		}
	}
	return out
}

// families of the service; a headless one that does not say takes those of its pods.
func families(svc *corev1.Service, pods []*corev1.Pod) []discoveryv1.AddressType {
	var out []discoveryv1.AddressType
	add := func(v6 bool) {
		t := discoveryv1.AddressTypeIPv4
		if v6 {
			t = discoveryv1.AddressTypeIPv6
		}
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	for _, f := range svc.Spec.IPFamilies {
		add(f == corev1.IPv6Protocol)
	}
	if len(out) > 0 {
		return out
	}
	for _, ip := range clusterIPs(svc) {
		add(ip.Is6())
	}
	if len(out) > 0 {
		return out
	}
	for _, p := range pods {
		for _, ip := range podIPs(p) {
			add(ip.Is6())
		}
	}
	slices.Sort(out)
	return out
}

func slice(svc *corev1.Service, pods []*corev1.Pod, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	suffix := "ipv4"
	if family == discoveryv1.AddressTypeIPv6 {
		suffix = "ipv6"
	}
	s := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: svc.Namespace, Name: svc.Name + "-" + suffix,
			Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: managedBy},
		},
		AddressType: family,
	}
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		s.Labels[corev1.IsHeadlessService] = ""
	}
	for _, p := range svc.Spec.Ports {
		s.Ports = append(s.Ports, slicePort(p, pods))
	}
	for _, p := range pods {
		for _, ip := range podIPs(p) {
			if ip.Is6() == (family == discoveryv1.AddressTypeIPv6) {
				s.Endpoints = append(s.Endpoints, endpoint(svc, p, ip))
				break
			}
		}
	}
	return s
}

// slicePort resolves a named target port by the first pod that has it; where pods disagree about a name, the later
// ones' ports are not reached, which no topology of ours needs.
func slicePort(p corev1.ServicePort, pods []*corev1.Pod) discoveryv1.EndpointPort {
	number := p.TargetPort.IntVal
	if p.TargetPort.Type == intstr.String {
		number = 0
		for _, pod := range pods {
			if number = namedPort(pod, p.TargetPort.StrVal); number != 0 {
				break
			}
		}
	} else if number == 0 {
		number = p.Port
	}
	proto := cmp.Or(p.Protocol, corev1.ProtocolTCP)
	ep := discoveryv1.EndpointPort{Name: &p.Name, Port: &number, Protocol: &proto, AppProtocol: p.AppProtocol}
	if number == 0 {
		ep.Port = nil
	}
	return ep
}

func namedPort(pod *corev1.Pod, name string) int32 {
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == name {
				return p.ContainerPort
			}
		}
	}
	return 0
}

func endpoint(svc *corev1.Service, p *corev1.Pod, ip netip.Addr) discoveryv1.Endpoint {
	terminating := p.DeletionTimestamp != nil
	serving := podReady(p)
	ready := (serving && !terminating) || svc.Spec.PublishNotReadyAddresses
	e := discoveryv1.Endpoint{
		Addresses:  []string{ip.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if p.Spec.NodeName != "" {
		e.NodeName = &p.Spec.NodeName
	}
	if p.Spec.Hostname != "" && p.Spec.Subdomain == svc.Name {
		e.Hostname = &p.Spec.Hostname
	}
	return e
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func podIPs(p *corev1.Pod) []netip.Addr {
	var out []netip.Addr
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// clusterIPs are the service's own addresses; none if it is headless.
func clusterIPs(svc *corev1.Service) []netip.Addr {
	list := svc.Spec.ClusterIPs
	if len(list) == 0 && svc.Spec.ClusterIP != "" {
		list = []string{svc.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, ip := range list {
		if a, err := netip.ParseAddr(ip); err == nil { // "None" is no address
			out = append(out, a)
		}
	}
	return out
}

// sorted are a map's values in the order of its keys, so that equal objects give equal results.
func sorted[T any](m map[string]T) []T {
	out := make([]T, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}
