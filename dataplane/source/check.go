// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// FieldError is one bad field of an object.
type FieldError struct {
	Field string
	Err   error
}

func (e FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

func (e FieldError) Unwrap() error { return e.Err }

// checks collects what is wrong, so that one pass reports all of it.
type checks []FieldError

func (c *checks) addf(field, format string, args ...any) {
	*c = append(*c, FieldError{Field: field, Err: fmt.Errorf(format, args...)})
}

func (c *checks) ip(field, s string) {
	if a, err := netip.ParseAddr(s); err != nil || a.Zone() != "" {
		c.addf(field, "%q is not an IP address", s)
	}
}

// dnsSubdomain holds s to what Kubernetes takes for most names (RFC 1123): one that is none could not be part of a
// resource name, an identity or a file name.
func (c *checks) dnsSubdomain(field, s string) {
	if s == "" {
		c.addf(field, "is missing")
		return
	}
	if err := subdomain(s); err != nil {
		c.addf(field, "%q %w", s, err)
	}
}

func (c *checks) port(field string, p int64) {
	if p < 1 || p > 65535 {
		c.addf(field, "%d is not a port (1 to 65535)", p)
	}
}

var errSubdomain = errors.New("is not a lower case RFC 1123 name")

func subdomain(s string) error {
	if len(s) > 253 {
		return errSubdomain
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return errSubdomain
		}
		for _, r := range label {
			if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
				return errSubdomain
			}
		}
	}
	return nil
}

func checkMeta(o Object, namespaced bool) []FieldError {
	var c checks
	c.dnsSubdomain("metadata.name", o.GetName())
	switch {
	case namespaced:
		c.dnsSubdomain("metadata.namespace", o.GetNamespace())
	case o.GetNamespace() != "":
		c.addf("metadata.namespace", "this kind has no namespace")
	}
	return c
}

func checkPod(p *corev1.Pod) []FieldError {
	var c checks
	if n := p.Spec.NodeName; n != "" {
		c.dnsSubdomain("spec.nodeName", n)
	}
	if sa := p.Spec.ServiceAccountName; sa != "" {
		c.dnsSubdomain("spec.serviceAccountName", sa)
	}
	for i, ctr := range p.Spec.Containers {
		for j, port := range ctr.Ports {
			c.port(fmt.Sprintf("spec.containers[%d].ports[%d].containerPort", i, j), int64(port.ContainerPort))
		}
	}
	if p.Status.PodIP != "" {
		c.ip("status.podIP", p.Status.PodIP)
	}
	for i, ip := range p.Status.PodIPs {
		c.ip(fmt.Sprintf("status.podIPs[%d].ip", i), ip.IP)
	}
	return c
}

func checkService(s *corev1.Service) []FieldError {
	var c checks
	for i, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone && ip != "" {
			c.ip(fmt.Sprintf("spec.clusterIPs[%d]", i), ip)
		}
	}
	if ip := s.Spec.ClusterIP; ip != "" && ip != corev1.ClusterIPNone {
		c.ip("spec.clusterIP", ip)
	}
	for i, p := range s.Spec.Ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		c.port(at+".port", int64(p.Port))
		if p.TargetPort.Type == intstr.Int && p.TargetPort.IntVal != 0 {
			c.port(at+".targetPort", int64(p.TargetPort.IntVal))
		}
	}
	for i, f := range s.Spec.IPFamilies {
		if f != corev1.IPv4Protocol && f != corev1.IPv6Protocol {
			c.addf(fmt.Sprintf("spec.ipFamilies[%d]", i), "%q is neither IPv4 nor IPv6", f)
		}
	}
	return c
}

func checkEndpointSlice(s *discoveryv1.EndpointSlice) []FieldError {
	var c checks
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
		for i, e := range s.Endpoints {
			for j, a := range e.Addresses {
				c.ip(fmt.Sprintf("endpoints[%d].addresses[%d]", i, j), a)
			}
		}
	case discoveryv1.AddressTypeFQDN:
	default:
		c.addf("addressType", "%q is none of IPv4, IPv6, FQDN", s.AddressType)
	}
	for i, p := range s.Ports {
		if p.Port != nil {
			c.port(fmt.Sprintf("ports[%d].port", i), int64(*p.Port))
		}
	}
	return c
}
