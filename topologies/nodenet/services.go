// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Chains that every plan has. Those of services stand between services and refuse.
const (
	chainServices = "services"
	chainRefuse   = "refuse"
	chainHairpin  = "postrouting"
	chainLeaving  = "leaving"
)

// chains are the rules of c, in the order in which the kernel lists them.
func (c Config) chains(frontends []served) []chain {
	arrival := chain{name: "arrival", base: &base{"filter", "prerouting", -300}, rules: c.cutRules()}
	if !c.forwards() {
		return []chain{arrival}
	}
	services, each := serviceChains(frontends)
	chains := []chain{
		arrival,
		{name: "prerouting", base: &base{"nat", "prerouting", -100}, rules: []rule{{verb: jump, target: chainServices}}},
		{name: "output", base: &base{"nat", "output", -100}, rules: []rule{{verb: jump, target: chainServices}}},
		{name: chainHairpin, base: &base{"nat", "postrouting", 100}, rules: append(c.hairpinRules(frontends), c.leavingJumps()...)},
		{name: "forward", base: &base{"filter", "forward", 0}, rules: []rule{{verb: jump, target: chainRefuse}}},
		{name: "local", base: &base{"filter", "output", 0}, rules: []rule{{verb: jump, target: chainRefuse}}},
		services,
	}
	if len(c.ClusterSubnets) > 0 {
		chains = append(chains, chain{name: chainLeaving, rules: c.leavingRules()})
	}
	chains = append(chains, each...)
	return append(chains, chain{name: chainRefuse, rules: c.refuseRules(frontends)})
}

// serviceChains are the look-up of a virtual address and, for each, the choice of an endpoint.
func serviceChains(frontends []served) (lookup chain, each []chain) {
	lookup = chain{name: chainServices}
	for _, f := range frontends {
		if len(f.endpoints) == 0 {
			continue
		}
		name := fmt.Sprintf("service/%s/%d/%s/%s", f.service, f.port, strings.ToLower(string(f.protocol)), f.vip)
		name = strings.ReplaceAll(name, ":", "-")
		lookup.rules = append(lookup.rules, rule{
			destination: whole(f.vip), protocol: f.protocol, port: f.port, count: true, verb: goTo, target: name,
		})
		choice := chain{name: name}
		for i, e := range f.endpoints {
			r := rule{family: familyOf(e.Addr()), protocol: f.protocol, verb: dnat, to: e, count: true}
			if left := len(f.endpoints) - i; left > 1 {
				r.oneIn = uint32(left)
			}
			choice.rules = append(choice.rules, r)
		}
		each = append(each, choice)
	}
	return lookup, each
}

// hairpinRules give the node's address to a pod that reached itself by a virtual address: it would drop a packet that comes
// from its own.
func (c Config) hairpinRules(frontends []served) []rule {
	var rules []rule
	for _, f := range frontends {
		for _, e := range f.endpoints {
			r := rule{source: whole(e.Addr()), destination: whole(e.Addr()), count: true, verb: masquerade}
			local := slices.ContainsFunc(c.Self.PodSubnets, func(p netip.Prefix) bool { return p.Contains(e.Addr()) })
			if local && !slices.Contains(rules, r) {
				rules = append(rules, r)
			}
		}
	}
	return rules
}

// leavingJumps are for what comes from pods of this member.
func (c Config) leavingJumps() (rules []rule) {
	if len(c.ClusterSubnets) == 0 {
		return nil
	}
	for _, p := range c.Self.PodSubnets {
		rules = append(rules, rule{source: p, verb: jump, target: chainLeaving})
	}
	return rules
}

// leavingRules give the member's address to what leaves the cluster: nobody outside has a way back to a pod.
func (c Config) leavingRules() (rules []rule) {
	for _, p := range append(slices.Clone(c.ClusterSubnets), multicast...) {
		rules = append(rules, rule{destination: p.Masked(), verb: leave})
	}
	return append(rules, rule{count: true, verb: masquerade})
}

var multicast = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

// refuseRules answer callers of services without endpoints and of virtual addresses without a service.
func (c Config) refuseRules(frontends []served) []rule {
	var rules []rule
	for _, f := range frontends {
		if len(f.endpoints) > 0 {
			continue
		}
		r := rule{destination: whole(f.vip), protocol: f.protocol, port: f.port, count: true, verb: reject}
		if f.protocol == TCP {
			r.verb = reset
		}
		rules = append(rules, r)
	}
	for _, p := range c.ServiceSubnets {
		rules = append(rules,
			rule{destination: p.Masked(), protocol: TCP, count: true, verb: reset},
			rule{destination: p.Masked(), count: true, verb: reject})
	}
	return rules
}

func (c Config) cutRules() []rule {
	var rules []rule
	for _, h := range c.Peers {
		if !slices.Contains(c.Cut, h.Name) {
			continue
		}
		for _, a := range h.Addresses {
			rules = append(rules, rule{source: whole(a), count: true, verb: drop})
		}
		for _, p := range h.PodSubnets {
			rules = append(rules, rule{source: p, count: true, verb: drop})
		}
	}
	return rules
}
