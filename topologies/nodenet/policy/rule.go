// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// tableName is the one table that this package owns.
const tableName = "ambientlab-networkpolicy"

// standIn is what a dump says of itself.
const standIn = "# NetworkPolicy by ambientlab's nodenet, which stands in for a CNI project's enforcement"

// family is an address family; the zero value means both.
type family uint8

const (
	anyFamily family = iota
	ipv4
	ipv6
)

var families = []family{ipv4, ipv6}

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

// end is one end of a packet's way.
type end uint8

const (
	fromEnd end = iota
	toEnd
)

func (e end) keyword() string {
	if e == fromEnd {
		return "saddr"
	}
	return "daddr"
}

type verb uint8

const (
	accept verb = iota
	drop
	goTo
)

// rule is one rule; what is zero is not matched. Two rules are equal if == says so.
type rule struct {
	established bool // a connection that was let in before, and what is related to it

	end      end // which of the two addr and set are about
	addr     netip.Addr
	set      string
	family   family // of set's addresses
	protocol corev1.Protocol
	from, to uint16 // destination ports

	count   bool
	verb    verb
	target  string // of goTo
	note    string
	foreign string // read back, and not of any plan
}

// count is what a rule has counted, as far as it was read.
type count struct{ packets, bytes uint64 }

func (r rule) text(c count) string {
	if r.foreign != "" {
		return "# not of this plan: " + r.foreign
	}
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if r.established {
		add("ct state established,related")
	}
	switch {
	case r.addr.IsValid():
		add("%s %s %s", familyOf(r.addr).keyword(), r.end.keyword(), r.addr)
	case r.set != "":
		add("%s %s @%s", r.family.keyword(), r.end.keyword(), r.set)
	}
	proto := strings.ToLower(string(r.protocol))
	switch {
	case r.from != r.to:
		add("%s dport %d-%d", proto, r.from, r.to)
	case r.from != 0:
		add("%s dport %d", proto, r.from)
	case r.protocol != "":
		add("meta l4proto %s", proto)
	}
	if r.count {
		add("counter packets %d bytes %d", c.packets, c.bytes)
	}
	add("%s", [...]string{accept: "accept", drop: "drop", goTo: "goto " + r.target}[r.verb])
	if r.note != "" {
		add("comment %q", r.note)
	}
	return strings.Join(words, " ")
}

// chain is a list of rules; one with a priority is at the forward hook.
type chain struct {
	name     string
	priority int
	rules    []rule
	counts   []count // as read; may be nil
}

// set is a set of addresses of one family, never empty.
type set struct {
	name   string
	family family
	spans  []span
}

func (s set) text() string {
	elements := make([]string, len(s.spans))
	for i, e := range s.spans {
		elements[i] = e.String()
	}
	kind := map[family]string{ipv4: "ipv4_addr", ipv6: "ipv6_addr"}[s.family]
	return fmt.Sprintf("\tset %s {\n\t\ttype %s\n\t\tflags interval\n\t\telements = { %s }\n\t}\n", s.name, kind, strings.Join(elements, ",\n\t\t\t     "))
}

// content is what the table holds; without chains there is none.
type content struct {
	sets   []set
	chains []chain
}

// String is in the shape of `nft list ruleset`, which `nft -f` reads.
func (c content) String() string {
	if len(c.chains) == 0 {
		return ""
	}
	var parts []string
	for _, s := range c.sets {
		parts = append(parts, s.text())
	}
	for _, one := range c.chains {
		parts = append(parts, one.text())
	}
	return fmt.Sprintf("%s\ntable inet %s {\n%s}\n", standIn, tableName, strings.Join(parts, "\n"))
}

func (c chain) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tchain %s {\n", c.name)
	if c.priority != 0 {
		fmt.Fprintf(&b, "\t\ttype filter hook forward priority filter + %d; policy accept;\n", c.priority)
	}
	for i, r := range c.rules {
		var n count
		if i < len(c.counts) {
			n = c.counts[i]
		}
		fmt.Fprintf(&b, "\t\t%s\n", r.text(n))
	}
	b.WriteString("\t}\n")
	return b.String()
}
