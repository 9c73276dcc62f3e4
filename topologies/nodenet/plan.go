// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// chainName is what may be part of a chain's name.
var chainName = regexp.MustCompile(`^[a-zA-Z0-9][-a-zA-Z0-9./]*$`)

// Plan is what one member of the underlay gets: kernel settings, routes and rules.
type Plan struct {
	Settings []Setting
	Routes   []Route
	// Problems are mistakes of services; what they concern is left out of the plan.
	Problems []error
	chains   []chain
}

// Setting is a file below /proc/sys and what must stand in it.
type Setting struct{ Name, Value string }

// Route leads to Dst by way of Via, or straight over the underlay's link if Via is invalid.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
	MTU int // a larger packet is refused with an ICMP message that says so; 0 is the link's
}

func (r Route) String() string {
	s := fmt.Sprintf("route %s", r.Dst)
	if r.Via.IsValid() {
		s += fmt.Sprintf(" via %s", r.Via)
	}
	s += " dev " + UnderlayLink
	if r.MTU > 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	return s
}

// NewPlan computes the plan for c. It fails, with all of them, for mistakes in what c says of hosts. Those of services are
// nobody's business but their users': see Plan.Problems. Of two services with the same frontend, the first by name has it.
func NewPlan(c Config) (Plan, error) {
	if err := c.validate(); err != nil {
		return Plan{}, fmt.Errorf("plan network of %s: %w", c.Self.Name, err)
	}
	frontends, problems := c.frontends()
	p := Plan{Routes: c.routes(frontends), Problems: problems}
	if c.forwards() {
		p.Settings = []Setting{
			{"net/ipv4/ip_forward", "1"}, {"net/ipv6/conf/all/forwarding", "1"},
			{"net/ipv6/conf/default/accept_dad", "0"}, // new pods ask for the node's end of their cable, which would not answer for up to two seconds
		}
	}
	if c.forwards() || len(c.Cut) > 0 {
		p.chains = c.chains(frontends)
	}
	return p, nil
}

// routes to the pods of peers, to what peers have beside their underlay address, and one for virtual addresses: the kernel
// wants a route before it asks the output hook, and the source address comes from it.
func (c Config) routes(frontends []served) []Route {
	var routes []Route
	add := func(r Route) {
		if _, reachable := c.Self.address(r.Dst.Addr()); reachable && !slices.Contains(routes, r) {
			routes = append(routes, r)
		}
	}
	for _, h := range c.Peers {
		for _, p := range h.PodSubnets {
			via, _ := h.address(p.Addr())
			add(Route{Dst: p, Via: via, MTU: h.PathMTU})
		}
		for _, a := range h.Addresses {
			if first, _ := h.address(a); a != first {
				add(Route{Dst: whole(a), MTU: h.PathMTU})
			}
		}
	}
	if !c.forwards() {
		return routes
	}
	for _, p := range c.ServiceSubnets {
		add(Route{Dst: p.Masked()})
	}
	for _, f := range frontends {
		if !slices.ContainsFunc(c.ServiceSubnets, func(p netip.Prefix) bool { return p.Contains(f.vip) }) {
			add(Route{Dst: whole(f.vip)})
		}
	}
	return routes
}

func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// String prints settings and routes one a line, and then the rules in the shape of `nft list ruleset`.
func (p Plan) String() string {
	var s strings.Builder
	for _, k := range p.Settings {
		fmt.Fprintf(&s, "%s = %s\n", strings.ReplaceAll(k.Name, "/", "."), k.Value)
	}
	for _, r := range p.Routes {
		fmt.Fprintln(&s, r)
	}
	return s.String() + p.Nftables()
}

// Nftables is the plan's rules in the shape of `nft list ruleset`, which `nft -f` reads.
func (p Plan) Nftables() string { return chainsText(p.chains) }
