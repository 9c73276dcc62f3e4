// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func (d *localDecoder) policy(n *yaml.Node, path string) *mesh.Policy {
	p := &mesh.Policy{}
	d.object(n, path, fields{
		"name": d.text(&p.Name), "namespace": d.text(&p.Namespace), "dryRun": d.flag(&p.DryRun),
		"scope": enum(d, &p.Scope, map[string]mesh.PolicyScope{
			"Global": mesh.ScopePolicyGlobal, "Namespace": mesh.ScopePolicyNamespace, "WorkloadSelector": mesh.ScopePolicyWorkload,
		}),
		"action": enum(d, &p.Action, map[string]mesh.PolicyAction{"Allow": mesh.Allow, "Deny": mesh.Deny}),
		"rules": d.each(func(n *yaml.Node, path string) {
			var rule mesh.Rule
			d.each(func(n *yaml.Node, path string) {
				var clause mesh.Clause
				d.each(func(n *yaml.Node, path string) {
					clause.Matches = append(clause.Matches, d.match(n, path))
				})(n, path)
				rule.Clauses = append(rule.Clauses, clause)
			})(n, path)
			p.Rules = append(p.Rules, rule)
		}),
	})
	d.require(n, path, "name", "namespace", "scope", "action")
	return p
}

func (d *localDecoder) match(n *yaml.Node, path string) mesh.Match {
	var m mesh.Match
	d.object(n, path, fields{
		"namespaces": d.stringMatches(&m.Namespaces), "notNamespaces": d.stringMatches(&m.NotNamespaces),
		"principals": d.stringMatches(&m.Principals), "notPrincipals": d.stringMatches(&m.NotPrincipals),
		"serviceAccounts": d.accounts(&m.ServiceAccounts), "notServiceAccounts": d.accounts(&m.NotServiceAccounts),
		"sourceIps": d.prefixes(&m.SourceIPs), "notSourceIps": d.prefixes(&m.NotSourceIPs),
		"destinationIps": d.prefixes(&m.DestinationIPs), "notDestinationIps": d.prefixes(&m.NotDestinationIPs),
		"destinationPorts": d.portList(&m.DestinationPorts), "notDestinationPorts": d.portList(&m.NotDestinationPorts),
	})
	return m
}

// stringMatches reads ztunnel's form, a mapping of one kind to its value ("Exact: web"), and Istio's, a string in which a
// star at either end, or alone, has its usual meaning.
func (d *localDecoder) stringMatches(out *[]mesh.StringMatch) reader {
	return d.each(func(n *yaml.Node, path string) {
		if n.Kind != yaml.MappingNode {
			d.scalar(func(text string) error { *out = append(*out, parseStringMatch(text)); return nil })(n, path)
			return
		}
		kinds := fields{}
		for name, kind := range map[string]mesh.StringMatchKind{"Exact": mesh.MatchExact, "Prefix": mesh.MatchPrefix, "Suffix": mesh.MatchSuffix} {
			set := d.scalar(func(text string) error {
				*out = append(*out, mesh.StringMatch{Kind: kind, Value: text})
				return nil
			})
			kinds[name], kinds[strings.ToLower(name)] = set, set
		}
		presence := func(*yaml.Node, string) { *out = append(*out, mesh.StringMatch{Kind: mesh.MatchPresence}) }
		kinds["Presence"], kinds["presence"] = presence, presence
		before := len(*out)
		d.object(n, path, kinds)
		if len(*out) != before+1 {
			d.problem(path, "want exactly one of Exact, Prefix, Suffix, Presence")
		}
	})
}

func parseStringMatch(text string) mesh.StringMatch {
	if text == "*" {
		return mesh.StringMatch{Kind: mesh.MatchPresence}
	}
	if prefix, ok := strings.CutSuffix(text, "*"); ok {
		return mesh.StringMatch{Kind: mesh.MatchPrefix, Value: prefix}
	}
	if suffix, ok := strings.CutPrefix(text, "*"); ok {
		return mesh.StringMatch{Kind: mesh.MatchSuffix, Value: suffix}
	}
	return mesh.StringMatch{Value: text}
}

// accounts reads {namespace, serviceAccount} and "namespace/account".
func (d *localDecoder) accounts(out *[]mesh.ServiceAccountMatch) reader {
	return d.each(func(n *yaml.Node, path string) {
		var m mesh.ServiceAccountMatch
		if n.Kind == yaml.MappingNode {
			d.object(n, path, fields{"namespace": d.text(&m.Namespace), "serviceAccount": d.text(&m.ServiceAccount)})
			d.require(n, path, "namespace", "serviceAccount")
		} else {
			d.key(func(ns, name string) { m = mesh.ServiceAccountMatch{Namespace: ns, ServiceAccount: name} })(n, path)
		}
		*out = append(*out, m)
	})
}

// prefixes reads ranges; an address alone is a range of one.
func (d *localDecoder) prefixes(out *[]netip.Prefix) reader {
	return d.each(d.scalar(func(text string) error {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, aerr := netip.ParseAddr(text)
			if aerr != nil || a.Zone() != "" {
				return fmt.Errorf("%q is no range of addresses", text)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		*out = append(*out, p.Masked())
		return nil
	}))
}

func (d *localDecoder) portList(out *[]uint16) reader {
	return d.each(d.number(65535, func(v uint64) { *out = append(*out, uint16(v)) }))
}
