// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

// Plan is what a node's table holds. Without a policy there is no table.
type Plan struct {
	// Problems are mistakes of policies, which have no part in the plan, and addresses that two pods have.
	Problems []error
	content
}

// Nftables is the plan in the shape of `nft list ruleset`, which `nft -f` reads.
func (p Plan) Nftables() string { return p.content.String() }

// direction is one of the two ways in which a packet is judged.
type direction struct {
	kind     networkingv1.PolicyType
	name     string
	priority int // within the forward hook: accepting in one chain leaves the other's verdict to come
	own      end // which address is the judged pod's
}

// After nodenet's own rules, which refuse virtual addresses that lead nowhere.
var directions = []direction{
	{networkingv1.PolicyTypeEgress, "egress", 10, fromEnd},
	{networkingv1.PolicyTypeIngress, "ingress", 11, toEnd},
}

func (d direction) peer() end { return toEnd - d.own }

// NewPlan computes the plan of c's node. It does not depend on the order of anything.
func NewPlan(c Config) Plan {
	pl := planner{
		node: c.Node, namespaces: c.Namespaces, sets: map[string]set{}, peers: map[string][]rule{}, named: map[string]map[uint16][]span{},
	}
	var p Plan
	for _, np := range c.Policies {
		errs := Check(np)
		if len(errs) == 0 {
			sound, err := compile(np)
			if err == nil {
				pl.policies = append(pl.policies, sound)
				continue
			}
			errs = []error{fmt.Errorf("NetworkPolicy %s/%s: %w", np.Namespace, np.Name, err)}
		}
		p.Problems = append(p.Problems, errs...)
	}
	slices.SortFunc(pl.policies, func(a, b *policy) int { return strings.Compare(a.name(), b.name()) })
	if len(pl.policies) > 0 {
		p.Problems = append(p.Problems, pl.place(c.Pods)...)
		pl.closeStrangers(c.PodSubnets)
		for _, d := range directions {
			p.chains = append(p.chains, pl.chains(d)...)
		}
		for _, s := range pl.sets {
			p.sets = append(p.sets, s)
		}
		slices.SortFunc(p.sets, func(a, b set) int { return strings.Compare(a.name, b.name) })
	}
	slices.SortFunc(p.Problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return p
}

type planner struct {
	node       string
	namespaces map[string]map[string]string
	policies   []*policy
	pods       []Pod // each address is in one of them
	strangers  []rule
	sets       map[string]set

	peers map[string][]rule            // who a policy's rule is about, by its name
	named map[string]map[uint16][]span // and by the name of a port
}

// place sorts the pods, and gives an address that several claim to one.
func (pl *planner) place(pods []Pod) (problems []error) {
	pl.pods = slices.SortedFunc(slices.Values(pods), func(a, b Pod) int {
		if a.Ending != b.Ending {
			return map[bool]int{false: -1, true: 1}[a.Ending]
		}
		return strings.Compare(a.name(), b.name())
	})
	owner := map[netip.Addr]string{}
	for i := range pl.pods {
		p := &pl.pods[i]
		var kept []netip.Addr
		for _, ip := range p.IPs {
			if first, taken := owner[ip]; taken {
				problems = append(problems, fmt.Errorf("pods %s and %s both have the address %s: it is judged as the first one's", first, p.name(), ip))
				continue
			}
			owner[ip] = p.name()
			kept = append(kept, ip)
		}
		p.IPs = kept
	}
	return problems
}

// closeStrangers makes the rule for addresses of the node's own ranges that no pod has yet.
func (pl *planner) closeStrangers(subnets []netip.Prefix) {
	var all, known []span
	for _, s := range subnets {
		all = append(all, spanOf(s))
	}
	for i := range pl.pods {
		known = append(known, pl.pods[i].spans()...)
	}
	for _, at := range pl.addressSets("strangers", without(all, known)) {
		at.count, at.verb, at.note = true, drop, "no pod has this address yet"
		pl.strangers = append(pl.strangers, at)
	}
}

func (p *Pod) spans() []span {
	out := make([]span, len(p.IPs))
	for i, ip := range p.IPs {
		out[i] = alone(ip)
	}
	return out
}

// chains are the hook's, which finds the judged pod, and one for each pod of the node that a policy selects.
func (pl *planner) chains(d direction) []chain {
	base := chain{name: d.name, priority: d.priority, rules: []rule{{established: true, verb: accept}}}
	var each []chain
	for i := range pl.pods {
		pod := &pl.pods[i]
		if pod.Node != pl.node || len(pod.IPs) == 0 {
			continue
		}
		c, selected := pl.podChain(d, pod)
		if !selected {
			continue
		}
		for _, ip := range pod.IPs {
			base.rules = append(base.rules, rule{end: d.own, addr: ip, verb: goTo, target: c.name})
		}
		each = append(each, c)
	}
	for _, r := range pl.strangers {
		r.end = d.own
		base.rules = append(base.rules, r)
	}
	return append([]chain{base}, each...)
}

// podChain is what a pod's policies let pass, and a drop of the rest.
func (pl *planner) podChain(d direction, pod *Pod) (_ chain, selected bool) {
	c := chain{name: short(d.name + "/" + pod.name())}
	for _, ip := range pod.IPs {
		c.rules = append(c.rules, rule{end: d.peer(), addr: ip, count: true, verb: accept, note: "itself"})
	}
	var by []string
	for _, p := range pl.policies {
		if !p.selects(d.kind, pod) {
			continue
		}
		by = append(by, p.name())
		for i := range p.rules[d.kind] {
			c.rules = append(c.rules, pl.expand(d, p, i, pod)...)
		}
	}
	c.rules = append(c.rules, rule{count: true, verb: drop, note: note("not allowed by " + strings.Join(by, ", "))})
	return c, len(by) > 0
}

// expand is one rule of a policy, for one pod.
func (pl *planner) expand(d direction, p *policy, i int, pod *Pod) []rule {
	r := p.rules[d.kind][i]
	name := fmt.Sprintf("%s/%s/%d", d.name, p.name(), i)
	peers := func() []rule {
		if len(r.peers) == 0 {
			return []rule{{}}
		}
		return once(pl.peers, name, func() []rule { return pl.addressSets(name, pl.peerSpans(p, r)) })
	}
	var out []rule
	allow := func(at []rule, s portSpec) {
		for _, a := range at {
			if a.set != "" {
				a.end = d.peer()
			}
			a.protocol, a.from, a.to = s.protocol, s.from, s.to
			a.count, a.note = true, note(fmt.Sprintf("%s, %s rule %d", p.name(), d.name, i+1))
			out = append(out, a)
		}
	}
	for _, s := range portSpecs(r.ports) {
		switch {
		case s.named == "":
			allow(peers(), s)
		case d.kind == networkingv1.PolicyTypeIngress: // the port is the judged pod's
			for _, port := range pod.Ports {
				if s.means(port) {
					allow(peers(), s.number(port.Number))
				}
			}
		default: // the port is the peer's
			name := fmt.Sprintf("%s/%s/%s", name, strings.ToLower(string(s.protocol)), s.named)
			by := once(pl.named, name, func() map[uint16][]span { return pl.namedPeers(p, r, s) })
			for _, n := range slices.Sorted(maps.Keys(by)) {
				allow(pl.addressSets(fmt.Sprintf("%s/%d", name, n), by[n]), s.number(n))
			}
		}
	}
	return out
}

// once makes what all pods of a policy share when the first of them needs it.
func once[T any](made map[string]T, name string, what func() T) T {
	if _, done := made[name]; !done {
		made[name] = what()
	}
	return made[name]
}

// peerSpans are the addresses that a rule's peers have.
func (pl *planner) peerSpans(p *policy, r policyRule) []span {
	var spans []span
	for _, x := range r.peers {
		spans = append(spans, x.block...)
	}
	for i := range pl.pods {
		if pl.isPeer(p, r, &pl.pods[i]) {
			spans = append(spans, pl.pods[i].spans()...)
		}
	}
	return spans
}

func (pl *planner) isPeer(p *policy, r policyRule, pod *Pod) bool {
	return slices.ContainsFunc(r.peers, func(x peer) bool { return x.matches(p, pod, pl.namespaces) })
}

// namedPeers are the pods among a rule's peers that have a port of that name, by the number it has there.
func (pl *planner) namedPeers(p *policy, r policyRule, s portSpec) map[uint16][]span {
	by := map[uint16][]span{}
	for i := range pl.pods {
		pod := &pl.pods[i]
		if len(r.peers) > 0 && !pl.isPeer(p, r, pod) {
			continue
		}
		for _, port := range pod.Ports {
			if s.means(port) {
				by[port.Number] = append(by[port.Number], pod.spans()...)
			}
		}
	}
	return by
}

// addressSets makes a set of each family that the spans have, and a rule that matches it.
func (pl *planner) addressSets(name string, spans []span) []rule {
	var out []rule
	for _, f := range families {
		s := set{name: short(name + "/" + f.keyword()), family: f, spans: union(ofFamily(spans, f))}
		if len(s.spans) > 0 {
			pl.sets[s.name] = s
			out = append(out, rule{set: s.name, family: f})
		}
	}
	return out
}
