// SPDX-License-Identifier: Apache-2.0

package mesh

import "net/netip"

// PolicyScope says which workloads a policy covers.
type PolicyScope uint8

// Policy scopes, with the wire's numbers.
const (
	ScopePolicyGlobal PolicyScope = iota
	ScopePolicyNamespace
	ScopePolicyWorkload // only workloads that name it in AuthorizationPolicies
)

// PolicyAction is what happens to a connection that a policy matches.
type PolicyAction uint8

// Policy actions, with the wire's numbers.
const (
	Allow PolicyAction = iota
	Deny
)

func (a PolicyAction) String() string {
	if a == Deny {
		return "Deny"
	}
	return "Allow"
}

// Policy is an L4 authorization policy. It matches if any rule does; without rules it never matches.
type Policy struct {
	Name      string
	Namespace string
	Scope     PolicyScope
	Action    PolicyAction
	DryRun    bool
	Rules     []Rule
}

// Key is "namespace/name".
func (p *Policy) Key() string { return p.Namespace + "/" + p.Name }

// Rule matches if all of its clauses do.
type Rule struct{ Clauses []Clause }

// Clause matches if any of its matches does; an empty clause is true.
type Clause struct{ Matches []Match }

// Match is true if every field that is set agrees; values within a field are alternatives. A Match with no field set is
// never true. The Not fields are true if none of their values agrees.
type Match struct {
	Namespaces, NotNamespaces             []StringMatch
	Principals, NotPrincipals             []StringMatch // against Identity.Principal
	ServiceAccounts, NotServiceAccounts   []ServiceAccountMatch
	SourceIPs, NotSourceIPs               []netip.Prefix
	DestinationIPs, NotDestinationIPs     []netip.Prefix
	DestinationPorts, NotDestinationPorts []uint16
}

// Empty reports whether no field is set, so that m is never true.
func (m *Match) Empty() bool {
	return len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
		len(m.ServiceAccounts)+len(m.NotServiceAccounts)+len(m.SourceIPs)+len(m.NotSourceIPs)+
		len(m.DestinationIPs)+len(m.NotDestinationIPs)+len(m.DestinationPorts)+len(m.NotDestinationPorts) == 0
}

// StringMatchKind is how a StringMatch compares.
type StringMatchKind uint8

// Kinds of StringMatch.
const (
	MatchExact StringMatchKind = iota
	MatchPrefix
	MatchSuffix
	MatchPresence // any value that is not empty
)

// StringMatch compares one string.
type StringMatch struct {
	Kind  StringMatchKind
	Value string // unused with MatchPresence
}

// ServiceAccountMatch names one service account.
type ServiceAccountMatch struct {
	Namespace      string
	ServiceAccount string
}
