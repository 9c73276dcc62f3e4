// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
)

// span is a range of addresses of one family, both ends included.
type span struct{ from, to netip.Addr }

func alone(a netip.Addr) span { return span{a, a} }

func spanOf(p netip.Prefix) span {
	from := p.Masked().Addr()
	last := from.AsSlice()
	for bit := p.Bits(); bit < from.BitLen(); bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	to, _ := netip.AddrFromSlice(last)
	return span{from, to}
}

// String is an address, a prefix if the span is one, or "from-to".
func (s span) String() string {
	if s.from == s.to {
		return s.from.String()
	}
	for bits := range s.from.BitLen() {
		if p := netip.PrefixFrom(s.from, bits); spanOf(p) == s {
			return p.String()
		}
	}
	return s.from.String() + "-" + s.to.String()
}

// union is the spans sorted, and merged where they overlap or touch; IPv4 comes first.
func union(spans []span) []span {
	sorted := slices.SortedFunc(slices.Values(spans), func(a, b span) int { return a.from.Compare(b.from) })
	var out []span
	for _, s := range sorted {
		if last := len(out) - 1; last >= 0 && out[last].from.Is4() == s.from.Is4() && (out[last].to.Next() == s.from || !out[last].to.Less(s.from)) {
			if out[last].to.Less(s.to) {
				out[last].to = s.to
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// without is what is left of spans when those of holes are taken out.
func without(spans, holes []span) []span {
	out := union(spans)
	for _, h := range holes {
		var left []span
		for _, s := range out {
			if s.from.Is4() != h.from.Is4() || s.to.Less(h.from) || h.to.Less(s.from) {
				left = append(left, s)
				continue
			}
			if s.from.Less(h.from) {
				left = append(left, span{s.from, h.from.Prev()})
			}
			if h.to.Less(s.to) {
				left = append(left, span{h.to.Next(), s.to})
			}
		}
		out = left
	}
	return out
}

// ofFamily keeps the spans of one family.
func ofFamily(spans []span, f family) []span {
	return slices.DeleteFunc(slices.Clone(spans), func(s span) bool { return familyOf(s.from) != f })
}
