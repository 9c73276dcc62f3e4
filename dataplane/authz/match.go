// SPDX-License-Identifier: Apache-2.0

package authz

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func ruleMatches(r *mesh.Rule, c *Connection) bool {
	for i := range r.Clauses {
		if !clauseMatches(&r.Clauses[i], c) {
			return false
		}
	}
	return true
}

func clauseMatches(cl *mesh.Clause, c *Connection) bool {
	if len(cl.Matches) == 0 {
		return true
	}
	for i := range cl.Matches {
		if matchMatches(&cl.Matches[i], c) {
			return true
		}
	}
	return false
}

// matchMatches is true if every field that is set agrees, and at least one is set.
func matchMatches(m *mesh.Match, c *Connection) bool {
	v := verdict{}
	v.field(len(m.Namespaces), len(m.NotNamespaces),
		func() bool { return anyString(m.Namespaces, c.Source.Namespace) },
		func() bool { return anyString(m.NotNamespaces, c.Source.Namespace) })
	v.field(len(m.Principals), len(m.NotPrincipals),
		func() bool { return anyPrincipal(m.Principals, c.Source) },
		func() bool { return anyPrincipal(m.NotPrincipals, c.Source) })
	v.field(len(m.ServiceAccounts), len(m.NotServiceAccounts),
		func() bool { return anyAccount(m.ServiceAccounts, c.Source) },
		func() bool { return anyAccount(m.NotServiceAccounts, c.Source) })
	v.field(len(m.SourceIPs), len(m.NotSourceIPs),
		func() bool { return anyPrefix(m.SourceIPs, c.SrcIP) },
		func() bool { return anyPrefix(m.NotSourceIPs, c.SrcIP) })
	v.field(len(m.DestinationIPs), len(m.NotDestinationIPs),
		func() bool { return anyPrefix(m.DestinationIPs, c.Dst.Addr()) },
		func() bool { return anyPrefix(m.NotDestinationIPs, c.Dst.Addr()) })
	v.field(len(m.DestinationPorts), len(m.NotDestinationPorts),
		func() bool { return slices.Contains(m.DestinationPorts, c.Dst.Port()) },
		func() bool { return slices.Contains(m.NotDestinationPorts, c.Dst.Port()) })
	return v.set && !v.failed
}

// verdict folds the fields of a match: AND over fields, OR within one, negation for the Not twin.
type verdict struct{ set, failed bool }

func (v *verdict) field(positive, negative int, is, isNot func() bool) {
	if v.failed {
		return
	}
	if positive > 0 {
		v.set = true
		v.failed = !is()
	}
	if negative > 0 && !v.failed {
		v.set = true
		v.failed = isNot()
	}
}

func anyString(ms []mesh.StringMatch, s string) bool {
	for i := range ms {
		if stringMatches(&ms[i], s) {
			return true
		}
	}
	return false
}

func stringMatches(m *mesh.StringMatch, s string) bool {
	switch m.Kind {
	case mesh.MatchExact:
		return s == m.Value
	case mesh.MatchPrefix:
		return strings.HasPrefix(s, m.Value)
	case mesh.MatchSuffix:
		return strings.HasSuffix(s, m.Value)
	case mesh.MatchPresence:
		return s != ""
	default:
		return false
	}
}

// anyPrincipal never matches a peer without identity, whatever the pattern (even an empty prefix).
func anyPrincipal(ms []mesh.StringMatch, id mesh.Identity) bool {
	if id.IsZero() {
		return false
	}
	for i := range ms {
		if principalMatches(&ms[i], &id) {
			return true
		}
	}
	return false
}

// principalMatches compares with id's principal without building it.
func principalMatches(m *mesh.StringMatch, id *mesh.Identity) bool {
	parts := [...]string{id.TrustDomain, "/ns/", id.Namespace, "/sa/", id.ServiceAccount}
	switch m.Kind {
	case mesh.MatchExact:
		rest, ok := cutPrefixParts(parts[:], m.Value)
		return ok && rest == 0
	case mesh.MatchPrefix:
		_, ok := cutPrefixParts(parts[:], m.Value)
		return ok
	case mesh.MatchSuffix:
		return hasSuffixParts(parts[:], m.Value)
	case mesh.MatchPresence:
		return true
	default:
		return false
	}
}

// cutPrefixParts reports whether the concatenation of parts begins with want, and how many bytes follow it.
func cutPrefixParts(parts []string, want string) (rest int, ok bool) {
	for _, p := range parts {
		n := min(len(p), len(want))
		if p[:n] != want[:n] {
			return 0, false
		}
		want = want[n:]
		rest += len(p) - n
	}
	return rest, want == ""
}

func hasSuffixParts(parts []string, want string) bool {
	for i := len(parts) - 1; i >= 0 && want != ""; i-- {
		p := parts[i]
		n := min(len(p), len(want))
		if p[len(p)-n:] != want[len(want)-n:] {
			return false
		}
		want = want[:len(want)-n]
	}
	return want == ""
}

func anyAccount(ms []mesh.ServiceAccountMatch, id mesh.Identity) bool {
	if id.IsZero() {
		return false
	}
	for i := range ms {
		if ms[i].Namespace == id.Namespace && ms[i].ServiceAccount == id.ServiceAccount {
			return true
		}
	}
	return false
}

// anyPrefix compares as IPv4 what arrives IPv4-mapped, or a v4 rule would silently miss it.
func anyPrefix(ps []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
