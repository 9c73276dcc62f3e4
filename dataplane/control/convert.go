// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// annotationDryRun makes a policy be evaluated and logged, but not enforced.
const annotationDryRun = "istio.io/dry-run"

// convert says what an AuthorizationPolicy means to ztunnel (reference A6, "Conversion by istiod"); nil if it is not for
// ztunnel. The condition says what of it was left out, and is nil if the policy is for waypoints.
func convert(p *securityv1.AuthorizationPolicy, root string) (*mesh.Policy, *Condition) {
	spec := &p.Spec
	if len(spec.GetTargetRefs()) > 0 || spec.GetTargetRef() != nil {
		return nil, nil
	}
	out := &mesh.Policy{Name: p.Name, Namespace: p.Namespace, Scope: mesh.ScopePolicyNamespace}
	switch {
	case len(spec.GetSelector().GetMatchLabels()) > 0:
		out.Scope = mesh.ScopePolicyWorkload
	case p.Namespace == root:
		out.Scope = mesh.ScopePolicyGlobal
	}
	switch spec.GetAction() {
	case security.AuthorizationPolicy_ALLOW:
	case security.AuthorizationPolicy_DENY:
		out.Action = mesh.Deny
	default:
		return nil, ignoredAction(p)
	}
	// What is not a boolean leaves the policy enforced, and is reported.
	out.DryRun, _ = strconv.ParseBool(p.Annotations[annotationDryRun])
	outcomes := make([]outcome, 0, len(spec.GetRules()))
	for _, r := range spec.GetRules() {
		rule, o := convertRule(r, p.Namespace)
		o.left = out.Action == mesh.Allow && len(o.unsupported) > 0
		if !o.left {
			out.Rules = append(out.Rules, rule)
		}
		outcomes = append(outcomes, o)
	}
	return out, accepted(p, out, outcomes)
}

// outcome is what became of one rule.
type outcome struct {
	unsupported []string // fields and attributes that L4 cannot judge
	left        bool     // the rule was left out
	widened     bool     // a match lost some of its fields, and so matches more
	lost        bool     // an alternative lost all of its fields, and so never matches
	inert       bool     // every alternative of a clause did, so the rule never matches
}

// convertRule makes a clause each of sources, operations and conditions. A match that loses all of its fields stays, as
// istiod leaves it: empty, it is never true.
func convertRule(r *security.Rule, namespace string) (mesh.Rule, outcome) {
	var rule mesh.Rule
	var o outcome
	var operations, sources mesh.Clause
	for _, to := range r.GetTo() {
		operations.Matches = append(operations.Matches, o.note(convertOperation(to.GetOperation())))
	}
	for _, from := range r.GetFrom() {
		sources.Matches = append(sources.Matches, o.note(convertSource(from.GetSource(), namespace)))
	}
	for _, c := range []mesh.Clause{operations, sources} {
		if len(c.Matches) > 0 {
			rule.Clauses = append(rule.Clauses, c)
		}
	}
	for _, w := range r.GetWhen() {
		rule.Clauses = append(rule.Clauses, mesh.Clause{Matches: []mesh.Match{o.note(convertCondition(w))}})
	}
	for _, c := range rule.Clauses {
		some := false
		for i := range c.Matches {
			some = some || !c.Matches[i].Empty()
		}
		o.inert = o.inert || !some
	}
	return rule, o
}

func (o *outcome) note(m mesh.Match, unsupported []string) mesh.Match {
	if len(unsupported) > 0 {
		o.unsupported = append(o.unsupported, unsupported...)
		if m.Empty() {
			o.lost = true
		} else {
			o.widened = true
		}
	}
	return m
}

func convertOperation(o *security.Operation) (m mesh.Match, unsupported []string) {
	m = mesh.Match{DestinationPorts: ports(o.GetPorts()), NotDestinationPorts: ports(o.GetNotPorts())}
	return m, present(
		field{"hosts", o.GetHosts()}, field{"notHosts", o.GetNotHosts()},
		field{"methods", o.GetMethods()}, field{"notMethods", o.GetNotMethods()},
		field{"paths", o.GetPaths()}, field{"notPaths", o.GetNotPaths()})
}

func convertSource(s *security.Source, namespace string) (m mesh.Match, unsupported []string) {
	m = mesh.Match{
		Namespaces: stringMatches(s.GetNamespaces()), NotNamespaces: stringMatches(s.GetNotNamespaces()),
		Principals: stringMatches(s.GetPrincipals()), NotPrincipals: stringMatches(s.GetNotPrincipals()),
		ServiceAccounts: accounts(s.GetServiceAccounts(), namespace), NotServiceAccounts: accounts(s.GetNotServiceAccounts(), namespace),
		SourceIPs: prefixes(s.GetIpBlocks()), NotSourceIPs: prefixes(s.GetNotIpBlocks()),
	}
	return m, present(
		field{"remoteIpBlocks", s.GetRemoteIpBlocks()}, field{"notRemoteIpBlocks", s.GetNotRemoteIpBlocks()},
		field{"requestPrincipals", s.GetRequestPrincipals()}, field{"notRequestPrincipals", s.GetNotRequestPrincipals()},
		// Of L4, but the wire has no field for it.
		field{"trustDomains", s.GetTrustDomains()}, field{"notTrustDomains", s.GetNotTrustDomains()})
}

func convertCondition(w *security.Condition) (m mesh.Match, unsupported []string) {
	is, isNot := w.GetValues(), w.GetNotValues()
	switch w.GetKey() {
	case "source.ip":
		m.SourceIPs, m.NotSourceIPs = prefixes(is), prefixes(isNot)
	case "source.namespace":
		m.Namespaces, m.NotNamespaces = stringMatches(is), stringMatches(isNot)
	case "source.principal":
		m.Principals, m.NotPrincipals = stringMatches(is), stringMatches(isNot)
	case "destination.ip":
		m.DestinationIPs, m.NotDestinationIPs = prefixes(is), prefixes(isNot)
	case "destination.port":
		m.DestinationPorts, m.NotDestinationPorts = ports(is), ports(isNot)
	default:
		return m, []string{w.GetKey()}
	}
	return m, nil
}

type field struct {
	name   string
	values []string
}

func present(fields ...field) (names []string) {
	for _, f := range fields {
		if len(f.values) > 0 {
			names = append(names, f.name)
		}
	}
	return names
}

// stringMatches reads Istio's forms: *, *suffix, prefix* and the exact value.
func stringMatches(in []string) []mesh.StringMatch {
	var out []mesh.StringMatch
	for _, s := range in {
		m := mesh.StringMatch{Value: s}
		if s == "*" {
			m = mesh.StringMatch{Kind: mesh.MatchPresence}
		} else if rest, ok := strings.CutPrefix(s, "*"); ok {
			m = mesh.StringMatch{Kind: mesh.MatchSuffix, Value: rest}
		} else if rest, ok := strings.CutSuffix(s, "*"); ok {
			m = mesh.StringMatch{Kind: mesh.MatchPrefix, Value: rest}
		}
		out = append(out, m)
	}
	return out
}

// accounts reads "namespace/account", or "account" in the policy's own namespace.
func accounts(in []string, namespace string) []mesh.ServiceAccountMatch {
	var out []mesh.ServiceAccountMatch
	for _, s := range in {
		ns, account, ok := strings.Cut(s, "/")
		if !ok {
			ns, account = namespace, s
		}
		out = append(out, mesh.ServiceAccountMatch{Namespace: ns, ServiceAccount: account})
	}
	return out
}

// prefixes reads addresses and CIDRs; source has refused what is neither. An IPv4-mapped one means IPv4, as connections
// have it.
func prefixes(in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if a, addrErr := netip.ParseAddr(s); err != nil && addrErr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			continue
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		out = append(out, p.Masked())
	}
	return out
}

func ports(in []string) []uint16 {
	var out []uint16
	for _, s := range in {
		if n, err := strconv.ParseUint(s, 10, 16); err == nil {
			out = append(out, uint16(n))
		}
	}
	return out
}
