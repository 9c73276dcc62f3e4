// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/xds/securityapi"
)

// DecodeAuthorization reads an Authorization resource; err names every bad field. The result shares no memory with value.
func DecodeAuthorization(value []byte) (*mesh.Policy, error) {
	var in securityapi.Authorization
	if err := proto.Unmarshal(value, &in); err != nil {
		return nil, fmt.Errorf("decode authorization: %w", err)
	}
	p := &problems{}
	out := &mesh.Policy{
		Name: in.GetName(), Namespace: intern(in.GetNamespace()),
		Scope:  decodeEnum[mesh.PolicyScope](p, "scope", in.GetScope()),
		Action: decodeEnum[mesh.PolicyAction](p, "action", in.GetAction()), DryRun: in.GetDryRun(),
	}
	if out.Name == "" {
		p.add("name", "missing")
	}
	if out.Namespace == "" && out.Scope != mesh.ScopePolicyGlobal {
		p.add("namespace", "missing")
	}
	for i, r := range in.GetRules() {
		var rule mesh.Rule
		for j, c := range r.GetClauses() {
			var clause mesh.Clause
			for k, m := range c.GetMatches() {
				field := index(index(index("rules", i)+".clauses", j)+".matches", k)
				clause.Matches = append(clause.Matches, decodeMatch(p, field, m))
			}
			rule.Clauses = append(rule.Clauses, clause)
		}
		out.Rules = append(out.Rules, rule)
	}
	if err := p.err(fmt.Sprintf("decode authorization %q", out.Key())); err != nil {
		return nil, err
	}
	return out, nil
}

func decodeMatch(p *problems, field string, in *securityapi.Match) mesh.Match {
	return mesh.Match{
		Namespaces:          decodeStrings(p, field+".namespaces", in.GetNamespaces()),
		NotNamespaces:       decodeStrings(p, field+".not_namespaces", in.GetNotNamespaces()),
		Principals:          decodeStrings(p, field+".principals", in.GetPrincipals()),
		NotPrincipals:       decodeStrings(p, field+".not_principals", in.GetNotPrincipals()),
		ServiceAccounts:     decodeAccounts(in.GetServiceAccounts()),
		NotServiceAccounts:  decodeAccounts(in.GetNotServiceAccounts()),
		SourceIPs:           decodePrefixes(p, field+".source_ips", in.GetSourceIps()),
		NotSourceIPs:        decodePrefixes(p, field+".not_source_ips", in.GetNotSourceIps()),
		DestinationIPs:      decodePrefixes(p, field+".destination_ips", in.GetDestinationIps()),
		NotDestinationIPs:   decodePrefixes(p, field+".not_destination_ips", in.GetNotDestinationIps()),
		DestinationPorts:    decodePolicyPorts(p, field+".destination_ports", in.GetDestinationPorts()),
		NotDestinationPorts: decodePolicyPorts(p, field+".not_destination_ports", in.GetNotDestinationPorts()),
	}
}

func decodeStrings(p *problems, field string, in []*securityapi.StringMatch) []mesh.StringMatch {
	var out []mesh.StringMatch
	for i, m := range in {
		switch t := m.GetMatchType().(type) {
		case *securityapi.StringMatch_Exact:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchExact, Value: t.Exact})
		case *securityapi.StringMatch_Prefix:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchPrefix, Value: t.Prefix})
		case *securityapi.StringMatch_Suffix:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchSuffix, Value: t.Suffix})
		case *securityapi.StringMatch_Presence:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchPresence})
		default:
			// To leave the value out would widen a list of exceptions, so the policy is refused.
			p.add(index(field, i), "no kind of match that is known")
		}
	}
	return out
}

func decodeAccounts(in []*securityapi.ServiceAccountMatch) []mesh.ServiceAccountMatch {
	var out []mesh.ServiceAccountMatch
	for _, m := range in {
		out = append(out, mesh.ServiceAccountMatch{Namespace: intern(m.GetNamespace()), ServiceAccount: intern(m.GetServiceAccount())})
	}
	return out
}

func decodePrefixes(p *problems, field string, in []*securityapi.Address) []netip.Prefix {
	var out []netip.Prefix
	for i, a := range in {
		out = append(out, decodePrefix(p, index(field, i), a.GetAddress(), a.GetLength()))
	}
	return out
}

func decodePolicyPorts(p *problems, field string, in []uint32) []uint16 {
	var out []uint16
	for i, n := range in {
		out = append(out, decodePort(p, index(field, i), n))
	}
	return out
}

// EncodePolicy returns the resource's name and its Authorization, serialised. Equal policies give equal bytes.
func EncodePolicy(in *mesh.Policy) (name string, value []byte, err error) {
	p := &problems{}
	what := fmt.Sprintf("encode authorization %q", in.Key())
	out := &securityapi.Authorization{
		Name: in.Name, Namespace: in.Namespace, Scope: securityapi.Scope(in.Scope), Action: securityapi.Action(in.Action), DryRun: in.DryRun,
	}
	if in.Name == "" {
		p.add("name", "missing")
	}
	for i, r := range in.Rules {
		rule := &securityapi.Rule{}
		for j, c := range r.Clauses {
			clause := &securityapi.Clause{}
			for k := range c.Matches {
				field := index(index(index("rules", i)+".clauses", j)+".matches", k)
				clause.Matches = append(clause.Matches, encodeMatch(p, field, &c.Matches[k]))
			}
			rule.Clauses = append(rule.Clauses, clause)
		}
		out.Rules = append(out.Rules, rule)
	}
	if err := p.err(what); err != nil {
		return "", nil, err
	}
	value, err = deterministic.Marshal(out)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", what, err)
	}
	return in.Key(), value, nil
}

func encodeMatch(p *problems, field string, in *mesh.Match) *securityapi.Match {
	return &securityapi.Match{
		Namespaces:          encodeStrings(in.Namespaces),
		NotNamespaces:       encodeStrings(in.NotNamespaces),
		Principals:          encodeStrings(in.Principals),
		NotPrincipals:       encodeStrings(in.NotPrincipals),
		ServiceAccounts:     encodeAccounts(in.ServiceAccounts),
		NotServiceAccounts:  encodeAccounts(in.NotServiceAccounts),
		SourceIps:           encodePrefixes(p, field+".source_ips", in.SourceIPs),
		NotSourceIps:        encodePrefixes(p, field+".not_source_ips", in.NotSourceIPs),
		DestinationIps:      encodePrefixes(p, field+".destination_ips", in.DestinationIPs),
		NotDestinationIps:   encodePrefixes(p, field+".not_destination_ips", in.NotDestinationIPs),
		DestinationPorts:    encodePolicyPorts(in.DestinationPorts),
		NotDestinationPorts: encodePolicyPorts(in.NotDestinationPorts),
	}
}

func encodeStrings(in []mesh.StringMatch) []*securityapi.StringMatch {
	var out []*securityapi.StringMatch
	for _, m := range in {
		s := &securityapi.StringMatch{}
		switch m.Kind {
		case mesh.MatchPrefix:
			s.MatchType = &securityapi.StringMatch_Prefix{Prefix: m.Value}
		case mesh.MatchSuffix:
			s.MatchType = &securityapi.StringMatch_Suffix{Suffix: m.Value}
		case mesh.MatchPresence:
			s.MatchType = &securityapi.StringMatch_Presence{Presence: &emptypb.Empty{}}
		default:
			s.MatchType = &securityapi.StringMatch_Exact{Exact: m.Value}
		}
		out = append(out, s)
	}
	return out
}

func encodeAccounts(in []mesh.ServiceAccountMatch) []*securityapi.ServiceAccountMatch {
	var out []*securityapi.ServiceAccountMatch
	for _, m := range in {
		out = append(out, &securityapi.ServiceAccountMatch{Namespace: m.Namespace, ServiceAccount: m.ServiceAccount})
	}
	return out
}

func encodePrefixes(p *problems, field string, in []netip.Prefix) []*securityapi.Address {
	var out []*securityapi.Address
	for i, prefix := range in {
		b, n := encodePrefix(p, index(field, i), prefix)
		out = append(out, &securityapi.Address{Address: b, Length: n})
	}
	return out
}

func encodePolicyPorts(in []uint16) []uint32 {
	var out []uint32
	for _, n := range in {
		out = append(out, uint32(n))
	}
	return out
}
