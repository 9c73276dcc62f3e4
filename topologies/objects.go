// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// WorkloadContainer is the name of the container in a workload's pod.
const WorkloadContainer = "app"

// Objects renders one cluster to Kubernetes objects: the same bytes for the same topology, in an order in which each
// object's references come before it. Pods lack a uid and a status, nodes a status: those are the drivers'.
func (s *Spec) Objects(cluster string) ([]runtime.Object, error) {
	c := s.Cluster(cluster)
	if c == nil {
		return nil, fmt.Errorf("render topology %s: no cluster %q", s.Name, cluster)
	}
	services, err := c.serviceObjects()
	if err != nil {
		return nil, fmt.Errorf("render topology %s: %w", s.Name, err)
	}
	var objs []runtime.Object
	objs = appendAll(objs, c.namespaceObjects())
	objs = appendAll(objs, c.nodeObjects())
	pods := append(c.basePods(), c.podObjects()...)
	objs = appendAll(objs, c.accountObjects(pods))
	objs = appendAll(objs, services)
	for _, o := range c.Objects {
		objs = append(objs, o.DeepCopyObject())
	}
	objs = appendAll(objs, pods)
	for _, o := range objs {
		setKind(o)
	}
	return objs, nil
}

func appendAll[T runtime.Object](objs []runtime.Object, more []T) []runtime.Object {
	for _, o := range more {
		objs = append(objs, o)
	}
	return objs
}

// setKind fills in what Go types know and files need.
func setKind(o runtime.Object) {
	kind := ""
	switch o.(type) {
	case *corev1.Namespace:
		kind = "Namespace"
	case *corev1.Node:
		kind = "Node"
	case *corev1.ServiceAccount:
		kind = "ServiceAccount"
	case *corev1.Service:
		kind = "Service"
	case *corev1.Pod:
		kind = "Pod"
	default:
		return // raw objects say it themselves
	}
	o.GetObjectKind().SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
}

func (c *Cluster) namespaceObjects() []*corev1.Namespace {
	var out []*corev1.Namespace
	for _, name := range baseNamespaces {
		if slices.ContainsFunc(c.Namespaces, func(n Namespace) bool { return n.Name == name }) {
			continue
		}
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if name != systemNamespace {
			ns.Labels = byCluster()
		}
		out = append(out, ns)
	}
	for _, n := range c.Namespaces {
		out = append(out, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: n.Name, Labels: maps.Clone(n.Labels), Annotations: maps.Clone(n.Annotations),
		}})
	}
	for _, ns := range out {
		if ns.Labels == nil {
			ns.Labels = map[string]string{}
		}
		ns.Labels["kubernetes.io/metadata.name"] = ns.Name
	}
	return out
}

func (c *Cluster) nodeObjects() []*corev1.Node {
	out := make([]*corev1.Node, len(c.Nodes))
	for i, n := range c.Nodes {
		labels := byCluster()
		maps.Copy(labels, n.Labels)
		labels["kubernetes.io/hostname"] = n.Name
		if n.Region != "" {
			labels["topology.kubernetes.io/region"] = n.Region
		}
		if n.Zone != "" {
			labels["topology.kubernetes.io/zone"] = n.Zone
		}
		if n.Network != c.Network {
			labels[mesh.LabelNetwork] = n.Network
		}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: labels}}
		for _, p := range c.NodePodSubnets(i) {
			node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, p.String())
		}
		node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
		out[i] = node
	}
	return out
}

// NodePodSubnets are the pod ranges of the i-th node: the i-th /24 or /64 of each pod subnet.
func (c *Cluster) NodePodSubnets(i int) []netip.Prefix {
	out := make([]netip.Prefix, len(c.PodSubnets))
	for j, p := range c.PodSubnets {
		b := p.Addr().As16()
		if p.Addr().Is4() {
			n := int(b[14]) | int(b[13])<<8 // the bits before the last byte of an IPv4 address
			n += i
			b[14], b[13] = byte(n), byte(n>>8)
			out[j] = netip.PrefixFrom(netip.AddrFrom16(b).Unmap(), 24)
			continue
		}
		n := int(b[7]) | int(b[6])<<8 // the last bits of a /64
		n += i
		b[7], b[6] = byte(n), byte(n>>8)
		out[j] = netip.PrefixFrom(netip.AddrFrom16(b), 64)
	}
	return out
}

// accountObjects are the service accounts that pods name, and each namespace's default.
func (c *Cluster) accountObjects(pods []*corev1.Pod) []*corev1.ServiceAccount {
	seen := map[[2]string]bool{}
	var out []*corev1.ServiceAccount
	add := func(ns, name string) {
		if key := [2]string{ns, name}; !seen[key] {
			seen[key] = true
			out = append(out, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
		}
	}
	for _, ns := range c.namespaceObjects() {
		add(ns.Name, mesh.DefaultServiceAccount)
		out[len(out)-1].Labels = byCluster()
	}
	for _, p := range pods {
		add(p.Namespace, p.Spec.ServiceAccountName)
	}
	return out
}

func (c *Cluster) serviceObjects() ([]*corev1.Service, error) {
	services := c.baseServices()
	for i := range c.Services {
		services = append(services, c.Services[i].object())
	}
	vips := NewAllocator(c.ServiceSubnets)
	for _, s := range services { // first those that know their addresses, so that no allocation takes one
		if len(s.Spec.ClusterIPs) == 0 {
			setClusterIPs(s, c.wellKnownVIPs(s.Namespace, s.Name))
		}
		for _, ip := range s.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(ip); err == nil {
				vips.Reserve(a)
			}
		}
	}
	for _, s := range services {
		if len(s.Spec.ClusterIPs) > 0 {
			continue
		}
		ips, err := vips.Allocate()
		if err != nil {
			return nil, fmt.Errorf("service %s/%s: %w", s.Namespace, s.Name, err)
		}
		setClusterIPs(s, ips)
	}
	return services, nil
}

func (s *Service) object() *corev1.Service {
	o := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: s.Name, Labels: maps.Clone(s.Labels), Annotations: maps.Clone(s.Annotations),
		},
		Spec: corev1.ServiceSpec{Selector: maps.Clone(s.Selector)},
	}
	for _, p := range s.Ports {
		sp := corev1.ServicePort{
			Name: p.Name, Port: int32(p.Port), TargetPort: intstr.FromInt32(int32(p.TargetPort)), Protocol: corev1.Protocol(p.Protocol),
		}
		if p.AppProtocol != "" {
			sp.AppProtocol = &p.AppProtocol
		}
		o.Spec.Ports = append(o.Spec.Ports, sp)
	}
	if s.Headless {
		both := corev1.IPFamilyPolicyPreferDualStack // the API server's default is one family, whatever the cluster's pods have
		o.Spec.IPFamilyPolicy = &both
		o.Spec.ClusterIP, o.Spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
	} else {
		setClusterIPs(o, s.ClusterIPs)
	}
	return o
}

func setClusterIPs(s *corev1.Service, ips []netip.Addr) {
	if len(ips) == 0 {
		return
	}
	s.Spec.Type = corev1.ServiceTypeClusterIP
	s.Spec.ClusterIP = ips[0].String()
	for _, ip := range ips {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, ip.String())
		family := corev1.IPv4Protocol
		if ip.Is6() {
			family = corev1.IPv6Protocol
		}
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, family)
	}
	policy := corev1.IPFamilyPolicySingleStack
	if len(ips) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	s.Spec.IPFamilyPolicy = &policy
}
