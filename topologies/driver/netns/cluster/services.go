// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

// Services are what kube-proxy balances: every service with an address of its own (cluster IPs, external IPs, load
// balancer addresses), and the ready endpoints of each of its ports. Slices must be among the objects, those that Slices
// makes too. Equal objects give equal results.
func Services(o *source.Objects) []nodenet.Service {
	byService := slicesByService(o)
	var out []nodenet.Service
	for _, svc := range sorted(o.Services) {
		s := nodenet.Service{Name: svc.Namespace + "/" + svc.Name, VIPs: serviceIPs(svc)}
		if len(s.VIPs) == 0 {
			continue
		}
		for _, p := range svc.Spec.Ports {
			proto := nodenet.Protocol(cmp.Or(p.Protocol, corev1.ProtocolTCP))
			if proto != nodenet.TCP && proto != nodenet.UDP {
				continue
			}
			s.Ports = append(s.Ports, nodenet.ServicePort{
				Port: uint16(p.Port), Protocol: proto, Endpoints: endpoints(byService[s.Name], p.Name),
			})
		}
		out = append(out, s)
	}
	return out
}

func serviceIPs(svc *corev1.Service) []netip.Addr {
	out := clusterIPs(svc)
	extra := append([]string(nil), svc.Spec.ExternalIPs...)
	for _, in := range svc.Status.LoadBalancer.Ingress {
		extra = append(extra, in.IP)
	}
	for _, ip := range extra {
		if a, err := netip.ParseAddr(ip); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func slicesByService(o *source.Objects) map[string][]*discoveryv1.EndpointSlice {
	out := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range sorted(o.EndpointSlices) {
		if name := s.Labels[discoveryv1.LabelServiceName]; name != "" {
			out[s.Namespace+"/"+name] = append(out[s.Namespace+"/"+name], s)
		}
	}
	return out
}

// endpoints are the ready ones of a port, in the order of their slices.
func endpoints(ss []*discoveryv1.EndpointSlice, port string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range ss {
		number := slicePortNumber(s, port)
		for _, e := range s.Endpoints {
			if a, ok := readyAddr(e); ok && number != 0 {
				out = append(out, netip.AddrPortFrom(a, number))
			}
		}
	}
	return out
}

func slicePortNumber(s *discoveryv1.EndpointSlice, name string) uint16 {
	for _, p := range s.Ports {
		if p.Port != nil && (p.Name == nil && name == "" || p.Name != nil && *p.Name == name) {
			return uint16(*p.Port)
		}
	}
	return 0
}

// readyAddr is an endpoint's address, if traffic may go there. A condition that is not said means yes.
func readyAddr(e discoveryv1.Endpoint) (netip.Addr, bool) {
	if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(e.Addresses[0])
	return a, err == nil
}

// AssignClusterIPs gives svc the addresses that it lacks: those it has among o, else free ones of the subnets. Headless
// services and external names need none. svc is changed.
func AssignClusterIPs(o *source.Objects, subnets []netip.Prefix, svc *corev1.Service) error {
	if svc.Spec.ClusterIP != "" || len(svc.Spec.ClusterIPs) > 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		if svc.Spec.ClusterIP == "" && len(svc.Spec.ClusterIPs) > 0 {
			svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
		}
		return nil
	}
	if had := o.Services[svc.Namespace+"/"+svc.Name]; had != nil && len(clusterIPs(had)) > 0 {
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = had.Spec.ClusterIP, had.Spec.ClusterIPs
		svc.Spec.IPFamilies, svc.Spec.IPFamilyPolicy = had.Spec.IPFamilies, had.Spec.IPFamilyPolicy
		return nil
	}
	a := topologies.NewAllocator(wanted(subnets, svc.Spec.IPFamilies))
	for _, other := range o.Services {
		for _, ip := range clusterIPs(other) {
			a.Reserve(ip)
		}
	}
	ips, err := a.Allocate()
	if err != nil {
		return fmt.Errorf("service %s/%s: %w", svc.Namespace, svc.Name, err)
	}
	svc.Spec.ClusterIP = ips[0].String()
	svc.Spec.IPFamilies = nil
	for _, ip := range ips {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, ip.String())
		family := corev1.IPv4Protocol
		if ip.Is6() {
			family = corev1.IPv6Protocol
		}
		svc.Spec.IPFamilies = append(svc.Spec.IPFamilies, family)
	}
	return nil
}

// wanted are the subnets of the families that a service asks for; all if it does not.
func wanted(subnets []netip.Prefix, families []corev1.IPFamily) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range families {
		for _, s := range subnets {
			if s.Addr().Is6() == (f == corev1.IPv6Protocol) {
				out = append(out, s)
			}
		}
	}
	if len(out) == 0 {
		return subnets
	}
	return out
}
