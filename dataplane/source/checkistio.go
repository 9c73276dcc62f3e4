// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/netip"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	istiov1 "istio.io/client-go/pkg/apis/networking/v1"
)

func checkServiceEntry(s *istiov1.ServiceEntry) []FieldError {
	var c checks
	spec := &s.Spec
	if len(spec.Hosts) == 0 {
		c.addf("spec.hosts", "is missing")
	}
	for i, h := range spec.Hosts {
		c.host(fmt.Sprintf("spec.hosts[%d]", i), h, true)
	}
	for i, a := range spec.Addresses {
		c.addressOrPrefix(fmt.Sprintf("spec.addresses[%d]", i), a)
	}
	seen := map[uint32]bool{}
	for i, p := range spec.Ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		c.port(at+".number", int64(p.GetNumber()))
		if p.GetTargetPort() != 0 {
			c.port(at+".targetPort", int64(p.GetTargetPort()))
		}
		if seen[p.GetNumber()] {
			c.addf(at+".number", "%d is there twice", p.GetNumber())
		}
		seen[p.GetNumber()] = true
	}
	if spec.WorkloadSelector != nil && len(spec.Endpoints) > 0 {
		c.addf("spec.endpoints", "cannot stand beside workloadSelector")
	}
	for i, e := range spec.Endpoints {
		c.workload(fmt.Sprintf("spec.endpoints[%d]", i), e, spec.Resolution)
	}
	return c
}

func checkWorkloadEntry(w *istiov1.WorkloadEntry) []FieldError {
	var c checks
	c.workload("spec", &w.Spec, networking.ServiceEntry_DNS)
	return c
}

func (c *checks) workload(at string, w *networking.WorkloadEntry, r networking.ServiceEntry_Resolution) {
	switch addr := w.GetAddress(); {
	case addr == "":
		if w.GetNetwork() == "" {
			c.addf(at+".address", "is missing")
		}
	case strings.HasPrefix(addr, "unix:"):
		c.addf(at+".address", "a Unix socket cannot be reached through the mesh")
	default:
		if _, err := netip.ParseAddr(addr); err == nil {
			break
		}
		if r == networking.ServiceEntry_STATIC {
			c.ip(at+".address", addr)
			break
		}
		c.host(at+".address", addr, false)
	}
	for name, p := range w.GetPorts() {
		c.port(at+".ports["+name+"]", int64(p))
	}
	if sa := w.GetServiceAccount(); sa != "" {
		c.dnsSubdomain(at+".serviceAccount", sa)
	}
}

func (c *checks) host(field, h string, wildcard bool) {
	rest := h
	if wildcard {
		rest = strings.TrimPrefix(h, "*.")
	}
	c.dnsSubdomain(field, strings.ToLower(rest))
}

func (c *checks) addressOrPrefix(field, s string) {
	if _, err := netip.ParsePrefix(s); err == nil {
		return
	}
	if _, err := netip.ParseAddr(s); err != nil {
		c.addf(field, "%q is neither an IP address nor a CIDR", s)
	}
}
