// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// ttl is short, as CoreDNS has it for clusters: scenarios change services and ask again at once.
const ttl = 5

// Zone is what the cluster's DNS knows: immutable, built from objects.
type Zone struct {
	domain  string              // with its dot
	records map[string][]dns.RR // by lower case name with its dot; a name without records of its own has a nil entry
}

// NewZone builds the records of services, pods and hosts. domain is the cluster's, "cluster.local". Pods must carry
// their status, and the slices that Slices makes must be among the objects. hosts are further names, by full name.
func NewZone(o *source.Objects, domain string, hosts map[string][]netip.Addr) *Zone {
	z := &Zone{domain: dns.Fqdn(strings.ToLower(domain)), records: map[string][]dns.RR{}}
	z.add(z.domain) // the domain is there even if it is empty
	z.add("svc." + z.domain)
	byService := slicesByService(o)
	for _, svc := range sorted(o.Services) {
		z.service(svc, byService[svc.Namespace+"/"+svc.Name])
	}
	for _, p := range sorted(o.Pods) {
		for _, ip := range podIPs(p) {
			z.addr(dashed(ip)+"."+p.Namespace+".pod."+z.domain, ip)
		}
	}
	for name, ips := range hosts {
		for _, ip := range ips {
			z.addr(dns.Fqdn(strings.ToLower(name)), ip)
		}
	}
	return z
}

func (z *Zone) service(svc *corev1.Service, ss []*discoveryv1.EndpointSlice) {
	name := svc.Name + "." + svc.Namespace + ".svc." + z.domain
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		z.add(name, &dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: dns.Fqdn(svc.Spec.ExternalName)})
		return
	}
	z.add(name)
	if ips := clusterIPs(svc); len(ips) > 0 {
		for _, ip := range ips {
			z.addr(name, ip)
			z.pointer(ip, name)
		}
		for _, p := range svc.Spec.Ports {
			z.port(name, p.Name, string(p.Protocol), uint16(p.Port), name)
		}
		return
	}
	for _, s := range ss {
		z.headless(name, s)
	}
}

// headless adds one slice's ready endpoints: each under the service's name and under one of its own.
func (z *Zone) headless(name string, s *discoveryv1.EndpointSlice) {
	for _, e := range s.Endpoints {
		ip, ok := readyAddr(e)
		if !ok {
			continue
		}
		host := dashed(ip)
		if e.Hostname != nil {
			host = *e.Hostname
		}
		own := host + "." + name
		z.addr(name, ip)
		z.addr(own, ip)
		z.pointer(ip, own)
		for _, p := range s.Ports {
			if p.Name != nil && p.Port != nil && p.Protocol != nil {
				z.port(name, *p.Name, string(*p.Protocol), uint16(*p.Port), own)
			}
		}
	}
}

func (z *Zone) addr(name string, ip netip.Addr) {
	if ip.Is4() {
		z.add(name, &dns.A{Hdr: header(name, dns.TypeA), A: ip.AsSlice()})
		return
	}
	z.add(name, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
}

// port adds the SRV record of a named port.
func (z *Zone) port(service, port, protocol string, number uint16, target string) {
	if port == "" {
		return
	}
	if protocol == "" {
		protocol = "tcp"
	}
	name := "_" + port + "._" + strings.ToLower(protocol) + "." + service
	rr := &dns.SRV{Hdr: header(name, dns.TypeSRV), Priority: 0, Weight: 100, Port: number, Target: target}
	if !slices.ContainsFunc(z.records[name], func(o dns.RR) bool { return dns.IsDuplicate(o, rr) }) { // one target, two families
		z.add(name, rr)
	}
}

func (z *Zone) pointer(ip netip.Addr, target string) {
	name, err := dns.ReverseAddr(ip.String())
	if err != nil {
		return // an address is always reversible
	}
	z.add(name, &dns.PTR{Hdr: header(name, dns.TypePTR), Ptr: target})
}

// add records at a name and makes every name above it exist, up to the root.
func (z *Zone) add(name string, rrs ...dns.RR) {
	z.records[name] = append(z.records[name], rrs...)
	for {
		_, parent, ok := strings.Cut(name, ".")
		if !ok || parent == "" {
			return
		}
		if _, ok := z.records[parent]; ok {
			return
		}
		z.records[parent], name = nil, parent
	}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// dashed is an address as a DNS label.
func dashed(ip netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(ip.String())
}
