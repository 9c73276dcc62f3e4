// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// UnderlayLink is the name of a member's link to the underlay.
const UnderlayLink = "eth0"

// Host is one machine on the underlay: a node, or (without pod subnets) a host outside the cluster.
type Host struct {
	Name string
	// Addresses are those on the underlay. The first of a family is the one that routes to PodSubnets go by.
	Addresses  []netip.Addr
	PodSubnets []netip.Prefix
	// PathMTU, of a peer, is the largest packet that the path to it takes, if that is less than the link's; 0 otherwise.
	PathMTU int
}

// Protocol is a transport protocol by its name in Kubernetes.
type Protocol string

// Protocols that services have here.
const (
	TCP Protocol = "TCP"
	UDP Protocol = "UDP"
)

// Service is a service with virtual addresses. One without (a headless one) is ignored.
type Service struct {
	Name  string // unique, such as "shop/cart"
	VIPs  []netip.Addr
	Ports []ServicePort
}

// ServicePort is one port of a service. Endpoints are the ready ones, of any family; a VIP uses those of its own. Without any, callers are refused.
type ServicePort struct {
	Port      uint16
	Protocol  Protocol // "" is TCP
	Endpoints []netip.AddrPort
}

// Config is what one member of the underlay has to know. A member without pod subnets forwards nothing, which suits hosts outside
// the cluster: they need Self and Peers alone.
type Config struct {
	Self  Host
	Peers []Host
	// ServiceSubnets are the ranges of virtual addresses; what in them belongs to no service is refused.
	ServiceSubnets []netip.Prefix
	Services       []Service
	// ClusterSubnets are the addresses of the cluster's pods. What a pod of this member sends to any other address leaves with
	// the member's own, as if it had sent it itself. Without any, nothing is masqueraded.
	ClusterSubnets []netip.Prefix
	// Cut names peers whose packets, and those of their pods, are dropped on arrival. A link is cut when both its ends say so.
	Cut []string
}

func (c Config) forwards() bool { return len(c.Self.PodSubnets) > 0 }

// validate reports every mistake but those of services.
func (c Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, h := range append([]Host{c.Self}, c.Peers...) {
		for _, p := range h.PodSubnets {
			if !p.IsValid() || p != p.Masked() {
				bad("host %q: pod subnet %s is not a network", h.Name, p)
			} else if _, ok := h.address(p.Addr()); !ok {
				bad("host %q: pod subnet %s has no underlay address of its family", h.Name, p)
			}
		}
		for _, a := range h.Addresses {
			if !a.IsValid() || a.Is4In6() {
				bad("host %q: bad address %s", h.Name, a)
			}
		}
	}
	for _, name := range c.Cut {
		if !slices.ContainsFunc(c.Peers, func(h Host) bool { return h.Name == name }) {
			bad("cut: no peer %q", name)
		}
	}
	return errors.Join(errs...)
}

func (p ServicePort) protocol() Protocol {
	if p.Protocol == "" {
		return TCP
	}
	return p.Protocol
}

// address is the host's first underlay address of like's family.
func (h Host) address(like netip.Addr) (netip.Addr, bool) {
	for _, a := range h.Addresses {
		if a.Is4() == like.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}
