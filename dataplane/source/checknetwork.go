// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// checkNetworkPolicy holds a policy to what an API server takes.
func checkNetworkPolicy(p *networkingv1.NetworkPolicy) []FieldError {
	var c checks
	c.labelSelector("spec.podSelector", &p.Spec.PodSelector)
	for i, t := range p.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			c.addf(fmt.Sprintf("spec.policyTypes[%d]", i), "%q is neither Ingress nor Egress", t)
		}
	}
	for i, r := range p.Spec.Ingress {
		at := fmt.Sprintf("spec.ingress[%d]", i)
		c.networkPeers(at+".from", r.From)
		c.networkPorts(at+".ports", r.Ports)
	}
	for i, r := range p.Spec.Egress {
		at := fmt.Sprintf("spec.egress[%d]", i)
		c.networkPeers(at+".to", r.To)
		c.networkPorts(at+".ports", r.Ports)
	}
	return c
}

func (c *checks) labelSelector(at string, s *metav1.LabelSelector) {
	if s == nil {
		return
	}
	if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
		c.addf(at, "%w", err)
	}
}

func (c *checks) networkPeers(at string, peers []networkingv1.NetworkPolicyPeer) {
	for i, p := range peers {
		at := fmt.Sprintf("%s[%d]", at, i)
		switch {
		case p.IPBlock == nil && p.PodSelector == nil && p.NamespaceSelector == nil:
			c.addf(at, "is empty: it needs a podSelector, a namespaceSelector or an ipBlock")
		case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
			c.addf(at+".ipBlock", "cannot stand beside a selector")
		case p.IPBlock != nil:
			c.ipBlock(at+".ipBlock", p.IPBlock)
		}
		c.labelSelector(at+".podSelector", p.PodSelector)
		c.labelSelector(at+".namespaceSelector", p.NamespaceSelector)
	}
}

func (c *checks) ipBlock(at string, b *networkingv1.IPBlock) {
	block, ok := c.cidr(at+".cidr", b.CIDR)
	for i, e := range b.Except {
		at := fmt.Sprintf("%s.except[%d]", at, i)
		if except, good := c.cidr(at, e); ok && good && (!block.Contains(except.Addr()) || except.Bits() <= block.Bits()) {
			c.addf(at, "%s is not a part of %s", e, b.CIDR)
		}
	}
}

func (c *checks) cidr(at, s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		c.addf(at, "%q is not a CIDR like 10.0.0.0/8", s)
		return p, false
	}
	return p, true
}

func (c *checks) networkPorts(at string, ports []networkingv1.NetworkPolicyPort) {
	for i, p := range ports {
		at := fmt.Sprintf("%s[%d]", at, i)
		if p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP && *p.Protocol != corev1.ProtocolUDP && *p.Protocol != corev1.ProtocolSCTP {
			c.addf(at+".protocol", "%q is none of TCP, UDP, SCTP", *p.Protocol)
		}
		switch {
		case p.Port == nil:
		case p.Port.Type == intstr.Int:
			c.port(at+".port", int64(p.Port.IntVal))
		default:
			c.portName(at+".port", p.Port.StrVal)
		}
		switch {
		case p.EndPort == nil:
		case p.Port == nil || p.Port.Type != intstr.Int:
			c.addf(at+".endPort", "needs a port by number, which begins the range")
		case *p.EndPort > 65535 || *p.EndPort < p.Port.IntVal:
			c.addf(at+".endPort", "%d is not from %d to 65535", *p.EndPort, p.Port.IntVal)
		}
	}
}

// portName is IANA_SVC_NAME (RFC 6335 §5.1).
func (c *checks) portName(at, s string) {
	const most = 15
	if len(s) > most || subdomain(s) != nil || strings.Contains(s, ".") || !strings.ContainsAny(s, "abcdefghijklmnopqrstuvwxyz") || strings.Contains(s, "--") {
		c.addf(at, "%q is not a name of a port", s)
	}
}
