// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"fmt"
	"net/netip"
	"strings"
)

// tableName is the one table that nodenet owns.
const tableName = "ambientlab-nodenet"

// family is an address family; the zero value means both.
type family uint8

const (
	anyFamily family = iota
	ipv4
	ipv6
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// keyword is the family's name in nft's language.
func (f family) keyword() string {
	if f == ipv4 {
		return "ip"
	}
	return "ip6"
}

type verb uint8

const (
	jump verb = iota + 1
	goTo
	dnat
	masquerade
	leave  // go on where the chain was jumped to from
	reset  // refuse with a TCP reset
	reject // refuse with "port unreachable"
	drop
)

// rule is one rule; what is zero is not matched. Two rules are equal if == says so.
type rule struct {
	family      family // only where no address says it
	source      netip.Prefix
	destination netip.Prefix
	protocol    Protocol
	port        uint16 // destination port
	oneIn       uint32 // matches at random, one time in so many
	count       bool
	verb        verb
	target      string         // of jump and goTo
	to          netip.AddrPort // of dnat
	foreign     string         // read back, and not of any plan
}

type base struct {
	kind, hook string
	priority   int
}

type chain struct {
	name  string
	base  *base
	rules []rule
}

// effectiveFamily is the family that the rule is about.
func (r rule) effectiveFamily() family {
	for _, p := range []netip.Prefix{r.source, r.destination} {
		if p.IsValid() {
			return familyOf(p.Addr())
		}
	}
	return r.family
}

func (r rule) String() string {
	if r.foreign != "" {
		return "# not of this plan: " + r.foreign
	}
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	f := r.effectiveFamily().keyword()
	if r.family != anyFamily {
		add("meta nfproto ipv%s", map[family]string{ipv4: "4", ipv6: "6"}[r.family])
	}
	if r.source.IsValid() {
		add("%s saddr %s", f, prefixText(r.source))
	}
	if r.destination.IsValid() {
		add("%s daddr %s", f, prefixText(r.destination))
	}
	proto := strings.ToLower(string(r.protocol))
	switch {
	case r.port != 0:
		add("%s dport %d", proto, r.port)
	case r.protocol != "":
		add("meta l4proto %s", proto)
	}
	if r.oneIn != 0 {
		add("numgen random mod %d 0", r.oneIn)
	}
	if r.count {
		add("counter packets 0 bytes 0")
	}
	add("%s", r.action(f))
	return strings.Join(words, " ")
}

func (r rule) action(f string) string {
	switch r.verb {
	case jump:
		return "jump " + r.target
	case goTo:
		return "goto " + r.target
	case dnat:
		return fmt.Sprintf("dnat %s to %s", r.family.keyword(), r.to)
	case masquerade:
		return "masquerade"
	case leave:
		return "return"
	case reset:
		return "reject with tcp reset"
	case reject:
		return map[string]string{"ip": "reject with icmp port-unreachable", "ip6": "reject with icmpv6 port-unreachable"}[f]
	case drop:
		return "drop"
	}
	return ""
}

func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func (b base) String() string {
	names := map[string]map[int]string{
		"prerouting":  {-300: "raw", -100: "dstnat"},
		"postrouting": {100: "srcnat"},
		"forward":     {0: "filter"},
		"output":      {0: "filter"},
	}
	name, ok := names[b.hook][b.priority]
	if !ok {
		name = fmt.Sprint(b.priority)
	}
	return fmt.Sprintf("type %s hook %s priority %s; policy accept;", b.kind, b.hook, name)
}

func chainsText(chains []chain) string {
	if len(chains) == 0 {
		return ""
	}
	var s strings.Builder
	fmt.Fprintf(&s, "table inet %s {\n", tableName)
	for i, c := range chains {
		if i > 0 {
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
	s.WriteString("}\n")
	return s.String()
}
