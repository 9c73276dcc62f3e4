// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"strings"
)

// tablePrefix and chainPrefix make the names that nftables' objects have upstream.
const (
	tablePrefix = "istio-ambient-"
	chainPrefix = "istio-"
)

// hook is where a chain is attached.
type hook string

const (
	prerouting hook = "prerouting"
	output     hook = "output"
)

// base is what makes a chain a base chain.
type base struct {
	kind     string
	hook     hook
	priority int
	drop     bool // the policy; never in a plan
}

// nftChain is a chain as nftables has it, planned or read back.
type nftChain struct {
	table, name string
	base        *base // nil for a chain that is only jumped to
	rules       []nftRule
}

// nftRule is a rule of the plan, a jump, or (read back) something that no plan contains.
type nftRule struct {
	rule           Rule
	jump           string
	foreign        string
	packets, bytes uint64
}

// nftChains are the chains of the plan in the order in which `nft list ruleset` shows them.
func (p Plan) nftChains() []nftChain {
	var chains []nftChain
	for _, t := range p.Tables {
		name := tablePrefix + string(t.Kind)
		for _, h := range []hook{prerouting, output} {
			b := t.Kind.base(h)
			chains = append(chains, nftChain{table: name, name: string(h), base: &b, rules: []nftRule{{jump: chainPrefix + string(h)}}})
		}
		chains = append(chains,
			nftChain{table: name, name: chainPrefix + string(prerouting), rules: nftRules(t.Prerouting)},
			nftChain{table: name, name: chainPrefix + string(output), rules: nftRules(t.Output)})
	}
	return chains
}

func nftRules(rules []Rule) []nftRule {
	var out []nftRule
	for _, r := range rules {
		out = append(out, nftRule{rule: r})
	}
	return out
}

func (k Kind) base(h hook) base {
	switch {
	case k == NAT:
		return base{kind: "nat", hook: h, priority: -100}
	case k == Raw:
		return base{kind: "filter", hook: h, priority: -300}
	case h == output:
		return base{kind: "route", hook: h, priority: -150} // a changed mark makes the kernel route the packet again
	}
	return base{kind: "filter", hook: h, priority: -150}
}

// Nftables is the plan's rules in the shape of `nft list ruleset`, which `nft -f` reads.
func (p Plan) Nftables() string { return nftText(p.nftChains()) }

func nftText(chains []nftChain) string {
	var s strings.Builder
	table := ""
	for i, c := range chains {
		if c.table != table {
			if table != "" {
				s.WriteString("}\n")
			}
			table = c.table
			fmt.Fprintf(&s, "table inet %s {\n", c.table)
		} else if i > 0 {
			s.WriteString("\n")
		}
		fmt.Fprintf(&s, "\tchain %s {\n", c.name)
		if c.base != nil {
			fmt.Fprintf(&s, "\t\t%s\n", c.base)
		}
		for _, r := range c.rules {
			fmt.Fprintf(&s, "\t\t%s\n", r)
		}
		s.WriteString("\t}\n")
	}
	if table != "" {
		s.WriteString("}\n")
	}
	return s.String()
}

func (b base) String() string {
	names := map[int]string{-300: "raw", -150: "mangle"}
	if b.hook == prerouting {
		names[-100] = "dstnat"
	}
	name, ok := names[b.priority]
	if !ok {
		name = fmt.Sprint(b.priority)
	}
	policy := "accept"
	if b.drop {
		policy = "drop"
	}
	return fmt.Sprintf("type %s hook %s priority %s; policy %s;", b.kind, b.hook, name, policy)
}

func (r nftRule) String() string {
	switch {
	case r.foreign != "":
		return "# not of this plan: " + r.foreign
	case r.jump != "":
		return "jump " + r.jump
	}
	words := nftMatches(r.rule)
	words = append(words, fmt.Sprintf("counter packets %d bytes %d", r.packets, r.bytes), nftAction(r.rule.Action))
	return strings.Join(words, " ")
}

func nftMatches(r Rule) []string {
	var words []string
	if r.Family != AnyFamily && !r.namesAddress() {
		words = append(words, "meta nfproto "+r.Family.String())
	}
	proto := "meta l4proto"
	for i, m := range r.Matches {
		eq, op := "", ""
		if m.Not {
			eq, op = "!= ", "!= "
		}
		switch m.Field {
		case Source:
			words = append(words, fmt.Sprintf("%s saddr %s%s", nftFamily(r.Family), eq, m.Addr))
		case Destination:
			words = append(words, fmt.Sprintf("%s daddr %s%s", nftFamily(r.Family), eq, m.Addr))
		case Protocol:
			proto = nftProtocol(m.Value)
			// A port match implies the protocol, and nft shows only the port.
			if i+1 >= len(r.Matches) || !r.Matches[i+1].Field.isPort() {
				words = append(words, fmt.Sprintf("meta l4proto %s%s", eq, proto))
			}
		case SourcePort:
			words = append(words, fmt.Sprintf("%s sport %s%d", proto, eq, m.Value))
		case DestinationPort:
			words = append(words, fmt.Sprintf("%s dport %s%d", proto, eq, m.Value))
		case OutInterface:
			words = append(words, fmt.Sprintf("oifname %s%q", op, m.Name))
		case Mark:
			words = append(words, "meta "+nftMark(m))
		case ConnMark:
			words = append(words, "ct "+nftMark(m))
		}
	}
	return words
}

func (f Field) isPort() bool { return f == SourcePort || f == DestinationPort }

func (r Rule) namesAddress() bool {
	for _, m := range r.Matches {
		if m.Field == Source || m.Field == Destination {
			return true
		}
	}
	return false
}

func nftFamily(f Family) string {
	if f == IPv6 {
		return "ip6"
	}
	return "ip"
}

func nftProtocol(number uint32) string {
	switch number {
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	}
	return fmt.Sprint(number)
}

func nftMark(m Match) string {
	op := "=="
	if m.Not {
		op = "!="
	}
	return fmt.Sprintf("mark & 0x%08x %s 0x%08x", m.Mask, op, m.Value)
}

func nftAction(a Action) string {
	switch a.Verb {
	case Accept:
		return "accept"
	case Redirect:
		return fmt.Sprintf("redirect to :%d", a.Value)
	case SetConnMark:
		return fmt.Sprintf("ct mark set ct mark & 0x%08x | 0x%08x", ^a.Mask|a.Value, a.Value)
	case RestoreMark:
		return "meta mark set ct mark"
	case SetZone:
		return fmt.Sprintf("ct zone set %d", a.Value)
	}
	return ""
}
