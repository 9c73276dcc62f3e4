// SPDX-License-Identifier: Apache-2.0

package authz

import (
	"net/netip"
	"slices"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// texts files rules by what a string is, begins with or ends with.
type texts struct {
	by       map[mesh.StringMatch][]ref // never MatchPresence
	prefixes []int                      // the lengths of the prefixes in by
	suffixes []int
}

func (t *texts) empty() bool { return len(t.by) == 0 }

func (t *texts) file(m mesh.StringMatch, r ref) {
	if t.by == nil {
		t.by = make(map[mesh.StringMatch][]ref)
	}
	t.by[m] = append(t.by[m], r)
	switch m.Kind {
	case mesh.MatchPrefix:
		t.prefixes = addLength(t.prefixes, len(m.Value))
	case mesh.MatchSuffix:
		t.suffixes = addLength(t.suffixes, len(m.Value))
	}
}

// at does not allocate: the compiler knows a key that is made of bytes.
func (t *texts) at(kind mesh.StringMatchKind, s []byte) []ref {
	return t.by[mesh.StringMatch{Kind: kind, Value: string(s)}]
}

func addLength(lengths []int, n int) []int {
	if i, found := slices.BinarySearch(lengths, n); !found {
		return slices.Insert(lengths, i, n)
	}
	return lengths
}

// text tries the rules that are filed under s.
func (f *finder) text(t *texts, s []byte) {
	f.try(t.at(mesh.MatchExact, s))
	for _, n := range t.prefixes {
		if n > len(s) {
			break
		}
		f.try(t.at(mesh.MatchPrefix, s[:n]))
	}
	for _, n := range t.suffixes {
		if n > len(s) {
			break
		}
		f.try(t.at(mesh.MatchSuffix, s[len(s)-n:]))
	}
}

// prefixes files rules by ranges of addresses.
type prefixes struct {
	by      map[netip.Prefix][]ref
	lengths [2][]int // of IPv4 and of IPv6
}

func (p *prefixes) file(a netip.Prefix, r ref) {
	if p.by == nil {
		p.by = make(map[netip.Prefix][]ref)
	}
	p.by[a] = append(p.by[a], r)
	family := &p.lengths[1]
	if a.Addr().Is4() {
		family = &p.lengths[0]
	}
	*family = addLength(*family, a.Bits())
}

// prefix tries the rules that are filed under a range that holds a.
func (f *finder) prefix(p *prefixes, a netip.Addr) {
	if len(p.by) == 0 {
		return
	}
	a = a.Unmap().WithZone("") // as anyPrefix compares
	lengths := p.lengths[1]
	if a.Is4() {
		lengths = p.lengths[0]
	}
	for _, bits := range lengths {
		if in, err := a.Prefix(bits); err == nil {
			f.try(p.by[in])
		}
	}
}

// place is where a rule can be filed. One field is set: they are the keys of an Index's maps.
type place struct {
	principal mesh.StringMatch
	namespace mesh.StringMatch
	account   mesh.ServiceAccountMatch
	prefix    netip.Prefix
	port      uint16
	kind      field
}

type field uint8

const (
	byPrincipal field = iota
	byNamespace
	byAccount
	bySource
	byTarget
	byPort
)

// builder counts how many rules could be filed at each place.
type builder struct{ could map[place]int }

func (b *builder) count(r *mesh.Rule) {
	if b.could == nil {
		b.could = make(map[place]int)
	}
	for i := range r.Clauses {
		for j := range r.Clauses[i].Matches {
			for _, list := range ways(&r.Clauses[i].Matches[j]) {
				for _, p := range list {
					b.could[p]++
				}
			}
		}
	}
}

// file puts a rule where it costs the fewest other connections a look.
func (b *builder) file(x *Index, r *mesh.Rule, to ref) {
	var best []place
	least, found := 0, false
	for i := range r.Clauses {
		if places, cost, ok := b.clause(&r.Clauses[i]); ok && (!found || cost < least) {
			best, least, found = places, cost, true
		}
	}
	if !found {
		x.everywhere = append(x.everywhere, to)
		return
	}
	for i, p := range best {
		if !slices.Contains(best[:i], p) {
			x.file(p, to)
		}
	}
}

// clause finds the places for a clause: one field of each of its matches, since any of them may hold.
func (b *builder) clause(c *mesh.Clause) (all []place, cost int, ok bool) {
	if len(c.Matches) == 0 {
		return nil, 0, false
	}
	for i := range c.Matches {
		m := &c.Matches[i]
		if m.Empty() { // never true
			continue
		}
		var best []place
		least, found := 0, false
		for _, list := range ways(m) {
			sum := 0
			for _, p := range list {
				sum += b.could[p]
			}
			if !found || sum < least {
				best, least, found = list, sum, true
			}
		}
		if !found {
			return nil, 0, false
		}
		all, cost = append(all, best...), cost+least
	}
	return all, cost, true
}

// ways lists, for each field of m that is set and bounds what it agrees with, the places of its values.
func ways(m *mesh.Match) [][]place {
	var out [][]place
	add := func(list []place, ok bool) {
		if ok {
			out = append(out, list)
		}
	}
	add(textPlaces(m.Principals, func(s mesh.StringMatch) place { return place{kind: byPrincipal, principal: s} }))
	add(textPlaces(m.Namespaces, func(s mesh.StringMatch) place { return place{kind: byNamespace, namespace: s} }))
	add(places(m.ServiceAccounts, func(a mesh.ServiceAccountMatch) place { return place{kind: byAccount, account: a} }))
	add(places(m.SourceIPs, func(p netip.Prefix) place { return place{kind: bySource, prefix: p.Masked()} }))
	add(places(m.DestinationIPs, func(p netip.Prefix) place { return place{kind: byTarget, prefix: p.Masked()} }))
	add(places(m.DestinationPorts, func(n uint16) place { return place{kind: byPort, port: n} }))
	return out
}

func places[T any](values []T, of func(T) place) ([]place, bool) {
	list := make([]place, len(values))
	for i, v := range values {
		list[i] = of(v)
	}
	return list, len(values) > 0
}

// textPlaces fails for a field that agrees with everything there is.
func textPlaces(values []mesh.StringMatch, of func(mesh.StringMatch) place) ([]place, bool) {
	if slices.ContainsFunc(values, func(s mesh.StringMatch) bool { return s.Kind == mesh.MatchPresence }) {
		return nil, false
	}
	return places(values, of)
}

func (x *Index) file(p place, r ref) {
	switch p.kind {
	case byPrincipal:
		x.principals.file(p.principal, r)
	case byNamespace:
		x.namespaces.file(p.namespace, r)
	case byAccount:
		if x.accounts == nil {
			x.accounts = make(map[mesh.ServiceAccountMatch][]ref)
		}
		x.accounts[p.account] = append(x.accounts[p.account], r)
	case bySource:
		x.sources.file(p.prefix, r)
	case byTarget:
		x.targets.file(p.prefix, r)
	case byPort:
		if x.ports == nil {
			x.ports = make(map[uint16][]ref)
		}
		x.ports[p.port] = append(x.ports[p.port], r)
	}
}
