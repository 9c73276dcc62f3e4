// SPDX-License-Identifier: Apache-2.0

package authz

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

var (
	web   = mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	plain = mesh.Identity{}
	dst   = netip.MustParseAddrPort("10.0.0.9:8080")
	src   = netip.MustParseAddr("10.0.0.1")
)

func conn(id mesh.Identity) Connection { return Connection{Source: id, SrcIP: src, Dst: dst} }

func policy(name string, a mesh.PolicyAction, ms ...mesh.Match) *mesh.Policy {
	p := &mesh.Policy{Name: name, Namespace: "shop", Action: a}
	for _, m := range ms {
		p.Rules = append(p.Rules, mesh.Rule{Clauses: []mesh.Clause{{Matches: []mesh.Match{m}}}})
	}
	return p
}

func exact(v string) []mesh.StringMatch { return []mesh.StringMatch{{Value: v}} }
func prefix(v string) []mesh.StringMatch {
	return []mesh.StringMatch{{Kind: mesh.MatchPrefix, Value: v}}
}
func suffix(v string) []mesh.StringMatch {
	return []mesh.StringMatch{{Kind: mesh.MatchSuffix, Value: v}}
}

var present = []mesh.StringMatch{{Kind: mesh.MatchPresence}}

func TestMatchFields(t *testing.T) {
	const principal = "cluster.local/ns/shop/sa/web"
	cidr := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	sa := func(ns, sa string) []mesh.ServiceAccountMatch {
		return []mesh.ServiceAccountMatch{{Namespace: ns, ServiceAccount: sa}}
	}
	mapped := Connection{Source: web, SrcIP: netip.MustParseAddr("::ffff:10.0.0.1"), Dst: dst}
	for _, tt := range []struct {
		name string
		m    mesh.Match
		c    Connection
		want bool
	}{
		{"nothing set", mesh.Match{}, conn(web), false},
		{"namespace", mesh.Match{Namespaces: exact("shop")}, conn(web), true},
		{"namespace of another", mesh.Match{Namespaces: exact("bank")}, conn(web), false},
		{"namespaces are alternatives", mesh.Match{Namespaces: append(exact("bank"), exact("shop")...)}, conn(web), true},
		{"namespace, plain text", mesh.Match{Namespaces: exact("shop")}, conn(plain), false},
		{"namespace present, plain text", mesh.Match{Namespaces: present}, conn(plain), false},
		{"not namespace, plain text", mesh.Match{NotNamespaces: exact("shop")}, conn(plain), true},
		{"namespace prefix", mesh.Match{Namespaces: prefix("sh")}, conn(web), true},
		{"namespace suffix", mesh.Match{Namespaces: suffix("op")}, conn(web), true},
		{"not namespace", mesh.Match{NotNamespaces: exact("shop")}, conn(web), false},
		{"principal", mesh.Match{Principals: exact(principal)}, conn(web), true},
		{"principal too long", mesh.Match{Principals: exact(principal + "x")}, conn(web), false},
		{"principal too short", mesh.Match{Principals: exact(principal[:len(principal)-1])}, conn(web), false},
		{"principal prefix", mesh.Match{Principals: prefix("cluster.local/ns/sh")}, conn(web), true},
		{"principal suffix", mesh.Match{Principals: suffix("/sa/web")}, conn(web), true},
		{"principal wrong suffix", mesh.Match{Principals: suffix("x/sa/web")}, conn(web), false},
		{"principal suffix longer than it", mesh.Match{Principals: suffix("x" + principal)}, conn(web), false},
		{"principal empty prefix, plain text", mesh.Match{Principals: prefix("")}, conn(plain), false},
		{"principal present", mesh.Match{Principals: present}, conn(web), true},
		{"principal present, plain text", mesh.Match{Principals: present}, conn(plain), false},
		{"not principal present: plain text", mesh.Match{NotPrincipals: present}, conn(plain), true},
		{"not principal present: mutual TLS", mesh.Match{NotPrincipals: present}, conn(web), false},
		{"service account", mesh.Match{ServiceAccounts: sa("shop", "web")}, conn(web), true},
		{"service account of another namespace", mesh.Match{ServiceAccounts: sa("bank", "web")}, conn(web), false},
		{"empty service account, plain text", mesh.Match{ServiceAccounts: sa("", "")}, conn(plain), false},
		{"not service account, plain text", mesh.Match{NotServiceAccounts: sa("shop", "web")}, conn(plain), true},
		{"source", mesh.Match{SourceIPs: cidr("10.0.0.0/24")}, conn(web), true},
		{"source outside", mesh.Match{SourceIPs: cidr("10.0.1.0/24")}, conn(web), false},
		{"source mapped into IPv6", mesh.Match{SourceIPs: cidr("10.0.0.0/24")}, mapped, true},
		{"source of the other family", mesh.Match{SourceIPs: cidr("::/0")}, conn(web), false},
		{"not source", mesh.Match{NotSourceIPs: cidr("10.0.0.1/32")}, conn(web), false},
		{"destination", mesh.Match{DestinationIPs: cidr("10.0.0.9/32")}, conn(web), true},
		{"not destination", mesh.Match{NotDestinationIPs: cidr("10.0.0.8/32")}, conn(web), true},
		{"port", mesh.Match{DestinationPorts: []uint16{80, 8080}}, conn(web), true},
		{"other port", mesh.Match{DestinationPorts: []uint16{80}}, conn(web), false},
		{"not port", mesh.Match{NotDestinationPorts: []uint16{8080}}, conn(web), false},
		{"fields are joined by and", mesh.Match{Namespaces: exact("shop"), DestinationPorts: []uint16{80}}, conn(web), false},
		{"both twins of a field", mesh.Match{Namespaces: prefix("s"), NotNamespaces: exact("shop")}, conn(web), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := decide([]*mesh.Policy{policy("p", mesh.Deny, tt.m)}, tt.c); got.Allowed == tt.want {
				t.Errorf("a DENY with it decided %+v, want match %v", got, tt.want)
			}
		})
	}
}

// decide is the decision by one index of policies.
func decide(policies []*mesh.Policy, c Connection) Decision {
	return Set{NewIndex(policies)}.Decide(c)
}

func TestDecide(t *testing.T) {
	fromShop := mesh.Match{Namespaces: exact("shop")}
	fromBank := mesh.Match{Namespaces: exact("bank")}
	allow, other := policy("allow", mesh.Allow, fromShop), policy("other", mesh.Allow, fromBank)
	deny := policy("deny", mesh.Deny, fromShop)
	dry := policy("dry", mesh.Deny, fromShop)
	dry.DryRun = true
	dryAllow := policy("dry-allow", mesh.Allow, fromBank)
	dryAllow.DryRun = true
	emptyClause := &mesh.Policy{Name: "empty", Namespace: "shop", Action: mesh.Deny, Rules: []mesh.Rule{{Clauses: []mesh.Clause{{}}}}}
	bothClauses := &mesh.Policy{Name: "both", Namespace: "shop", Action: mesh.Deny, Rules: []mesh.Rule{{Clauses: []mesh.Clause{
		{Matches: []mesh.Match{fromShop}}, {Matches: []mesh.Match{fromBank}}}}}}
	for _, tt := range []struct {
		name     string
		policies []*mesh.Policy
		want     Decision
	}{
		{"no policies", nil, Decision{Allowed: true}},
		{"allow", []*mesh.Policy{allow}, Decision{Allowed: true, Reason: AllowMatched, By: allow}},
		{"allow, none matches", []*mesh.Policy{other}, Decision{Reason: NoRuleMatched}},
		{"any allow suffices", []*mesh.Policy{other, allow}, Decision{Allowed: true, Reason: AllowMatched, By: allow}},
		{"deny wins, whatever the order", []*mesh.Policy{allow, deny}, Decision{Reason: DenyMatched, By: deny}},
		{"allow without rules denies all", []*mesh.Policy{policy("none", mesh.Allow)}, Decision{Reason: NoRuleMatched}},
		{"deny without rules denies nothing", []*mesh.Policy{policy("none", mesh.Deny)}, Decision{Allowed: true}},
		{"empty clause is true", []*mesh.Policy{emptyClause}, Decision{Reason: DenyMatched, By: emptyClause}},
		{"clauses are joined by and", []*mesh.Policy{bothClauses}, Decision{Allowed: true}},
		{"dry run only reports", []*mesh.Policy{dry, allow}, Decision{Allowed: true, Reason: AllowMatched, By: allow, DryRun: []string{"shop/dry"}}},
		{"a dry-run allow is no allow", []*mesh.Policy{dryAllow}, Decision{Allowed: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, decide(tt.policies, conn(web))); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecisionNamesItsPolicy(t *testing.T) {
	if got := decide([]*mesh.Policy{policy("deny", mesh.Deny, mesh.Match{Namespaces: present})}, conn(web)).Policy(); got != "shop/deny" {
		t.Errorf("policy %q", got)
	}
	if got := decide(nil, conn(web)).Policy(); got != "" {
		t.Errorf("policy %q, want none", got)
	}
}
