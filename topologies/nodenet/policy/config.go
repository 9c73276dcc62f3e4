// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// Config is what one node has to know: all policies, namespaces and pods of the cluster, and which pods are its own.
type Config struct {
	Node string
	// PodSubnets are the ranges of the node's pods. While there is a policy at all, an address of theirs that belongs to no
	// pod in Pods gets nothing through, so that a new pod is closed until its rules stand. Empty: it is open until then.
	PodSubnets []netip.Prefix
	Policies   []*networkingv1.NetworkPolicy
	Namespaces map[string]map[string]string // labels by name
	Pods       []Pod
}

// Pod is a pod that has addresses of its own.
type Pod struct {
	Namespace, Name string
	Node            string
	Labels          map[string]string
	IPs             []netip.Addr
	Ports           []Port
	Ending          bool // of two pods with one address, the one that ends loses it
}

// Port is a port of a container that has a name.
type Port struct {
	Name     string
	Protocol corev1.Protocol
	Number   uint16
}

func (p *Pod) name() string { return p.Namespace + "/" + p.Name }

// Objects is the part of a Config that is the same on all nodes. Pods must carry their status.
func Objects(o *source.Objects) Config {
	c := Config{Namespaces: map[string]map[string]string{}}
	for _, id := range slices.Sorted(maps.Keys(o.NetworkPolicies)) {
		c.Policies = append(c.Policies, o.NetworkPolicies[id])
	}
	if len(c.Policies) == 0 {
		return c
	}
	for name, ns := range o.Namespaces {
		labels := maps.Clone(ns.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[corev1.LabelMetadataName] = name // an API server's doing
		c.Namespaces[name] = labels
	}
	for _, id := range slices.Sorted(maps.Keys(o.Pods)) {
		if p := o.Pods[id]; !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			c.Pods = append(c.Pods, podOf(p))
		}
	}
	return c
}

func podOf(p *corev1.Pod) Pod {
	out := Pod{Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName, Labels: p.Labels, Ending: p.DeletionTimestamp != nil}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.IPs = append(out.IPs, a.Unmap())
		}
	}
	containers := slices.Concat(p.Spec.InitContainers, p.Spec.Containers)
	for i := range containers {
		for _, port := range containers[i].Ports {
			if port.Name != "" {
				out.Ports = append(out.Ports, Port{port.Name, cmp.Or(port.Protocol, corev1.ProtocolTCP), uint16(port.ContainerPort)})
			}
		}
	}
	return out
}
