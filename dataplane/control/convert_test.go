// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
)

// object decodes an object of kind; about is its metadata and spec as lines of YAML.
func object(t testing.TB, kind, about string) source.Object {
	t.Helper()
	o, problems := file.Decode([]byte("apiVersion: security.istio.io/v1\nkind: " + kind + "\n" + about + "\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return o
}

func authorizationPolicy(t testing.TB, about string) *securityv1.AuthorizationPolicy {
	t.Helper()
	return object(t, "AuthorizationPolicy", about).(*securityv1.AuthorizationPolicy)
}

func exactly(values ...string) (out []mesh.StringMatch) {
	for _, v := range values {
		out = append(out, mesh.StringMatch{Value: v})
	}
	return out
}

func blocks(values ...string) (out []netip.Prefix) {
	for _, v := range values {
		out = append(out, netip.MustParsePrefix(v))
	}
	return out
}

// one is a rule of one clause.
func one(matches ...mesh.Match) mesh.Rule {
	return mesh.Rule{Clauses: []mesh.Clause{{Matches: matches}}}
}

func clauses(matches ...mesh.Match) mesh.Rule {
	var r mesh.Rule
	for _, m := range matches {
		r.Clauses = append(r.Clauses, mesh.Clause{Matches: []mesh.Match{m}})
	}
	return r
}

// Reference A6, "Conversion by istiod": every field by itself.
func TestConvertRules(t *testing.T) {
	from := func(source string) string { return "{from: [{source: " + source + "}]}" }
	to := func(operation string) string { return "{to: [{operation: " + operation + "}]}" }
	when := func(condition string) string { return "{when: [" + condition + "]}" }
	for _, tc := range []struct {
		name, rule string
		want       mesh.Rule
	}{
		{"empty rule", "{}", mesh.Rule{}},
		{"principals", from("{principals: [cluster.local/ns/shop/sa/web]}"), one(mesh.Match{Principals: exactly("cluster.local/ns/shop/sa/web")})},
		{"string forms", from(`{principals: ["*", "a*", "*b", "a*b"]}`), one(mesh.Match{Principals: []mesh.StringMatch{
			{Kind: mesh.MatchPresence}, {Kind: mesh.MatchPrefix, Value: "a"}, {Kind: mesh.MatchSuffix, Value: "b"}, {Value: "a*b"},
		}})},
		{"not principals", from(`{notPrincipals: ["*"]}`), one(mesh.Match{NotPrincipals: []mesh.StringMatch{{Kind: mesh.MatchPresence}}})},
		{"namespaces", from("{namespaces: [a, b]}"), one(mesh.Match{Namespaces: exactly("a", "b")})},
		{"not namespaces", from("{notNamespaces: [a*]}"), one(mesh.Match{NotNamespaces: []mesh.StringMatch{{Kind: mesh.MatchPrefix, Value: "a"}}})},
		{"service accounts", from("{serviceAccounts: [web, other/batch]}"), one(mesh.Match{ServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "web"}, {Namespace: "other", ServiceAccount: "batch"}}})},
		{"not service accounts", from("{notServiceAccounts: [web]}"), one(mesh.Match{NotServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "web"}}})},
		{"ip blocks", from(`{ipBlocks: [10.0.0.1, 10.1.2.3/8, "fd00::1", "fd00::1/64", "::ffff:10.0.0.0/104"]}`),
			one(mesh.Match{SourceIPs: blocks("10.0.0.1/32", "10.0.0.0/8", "fd00::1/128", "fd00::/64", "10.0.0.0/8")})},
		{"not ip blocks", from("{notIpBlocks: [10.0.0.1]}"), one(mesh.Match{NotSourceIPs: blocks("10.0.0.1/32")})},
		{"ports", to(`{ports: ["80", "8080"]}`), one(mesh.Match{DestinationPorts: []uint16{80, 8080}})},
		{"not ports", to(`{notPorts: ["80"]}`), one(mesh.Match{NotDestinationPorts: []uint16{80}})},
		{"fields of a source", from("{namespaces: [a], notPrincipals: [b], ipBlocks: [10.0.0.1]}"),
			one(mesh.Match{Namespaces: exactly("a"), NotPrincipals: exactly("b"), SourceIPs: blocks("10.0.0.1/32")})},
		{"several sources", "{from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}]}", one(mesh.Match{Namespaces: exactly("a")}, mesh.Match{Namespaces: exactly("b")})},
		{"when source.ip", when("{key: source.ip, values: [10.0.0.1], notValues: [10.0.0.2]}"), one(mesh.Match{SourceIPs: blocks("10.0.0.1/32"), NotSourceIPs: blocks("10.0.0.2/32")})},
		{"when source.namespace", when("{key: source.namespace, values: [a*], notValues: [ab]}"), one(mesh.Match{Namespaces: []mesh.StringMatch{{Kind: mesh.MatchPrefix, Value: "a"}}, NotNamespaces: exactly("ab")})},
		{"when source.principal", when(`{key: source.principal, values: [a], notValues: ["*"]}`), one(mesh.Match{Principals: exactly("a"), NotPrincipals: []mesh.StringMatch{{Kind: mesh.MatchPresence}}})},
		{"when destination.ip", when("{key: destination.ip, values: [10.0.0.0/8], notValues: [10.0.0.2]}"), one(mesh.Match{DestinationIPs: blocks("10.0.0.0/8"), NotDestinationIPs: blocks("10.0.0.2/32")})},
		{"when destination.port", when(`{key: destination.port, values: ["80"], notValues: ["90"]}`), one(mesh.Match{DestinationPorts: []uint16{80}, NotDestinationPorts: []uint16{90}})},
		{"all of a rule must hold", `{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ["80"]}}], when: [{key: source.ip, values: [10.0.0.1]}, {key: destination.port, notValues: ["90"]}]}`,
			clauses(mesh.Match{DestinationPorts: []uint16{80}}, mesh.Match{Namespaces: exactly("a")}, mesh.Match{SourceIPs: blocks("10.0.0.1/32")}, mesh.Match{NotDestinationPorts: []uint16{90}})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for action, want := range map[string]mesh.PolicyAction{"ALLOW": mesh.Allow, "DENY": mesh.Deny} {
				got, c := convert(authorizationPolicy(t, "metadata: {name: p, namespace: shop}\nspec: {action: "+action+", rules: ["+tc.rule+"]}"), "istio-system")
				if diff := cmp.Diff(&mesh.Policy{Name: "p", Namespace: "shop", Scope: mesh.ScopePolicyNamespace, Action: want, Rules: []mesh.Rule{tc.want}}, got, equalPrefixes); diff != "" {
					t.Errorf("%s: %s", action, diff)
				}
				if !c.Accepted || c.Reason != ReasonAccepted || c.Message != "Served to ztunnel as written." {
					t.Errorf("%s: %+v", action, c)
				}
			}
		})
	}
}

var equalPrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestConvertScope(t *testing.T) {
	selector := ", spec: {selector: {matchLabels: {app: a}}}"
	for _, tc := range []struct {
		name, about string
		want        mesh.PolicyScope
		none        bool
	}{
		{"namespace", "metadata: {name: p, namespace: shop}", mesh.ScopePolicyNamespace, false},
		{"empty selector", "metadata: {name: p, namespace: shop}, spec: {selector: {}}", mesh.ScopePolicyNamespace, false},
		{"root namespace", "metadata: {name: p, namespace: root}", mesh.ScopePolicyGlobal, false},
		{"another istio-system", "metadata: {name: p, namespace: istio-system}", mesh.ScopePolicyNamespace, false},
		{"selector", "metadata: {name: p, namespace: shop}" + selector, mesh.ScopePolicyWorkload, false},
		{"selector in the root namespace", "metadata: {name: p, namespace: root}" + selector, mesh.ScopePolicyWorkload, false},
		{"target references", "metadata: {name: p, namespace: shop}, spec: {targetRefs: [{kind: Service, name: a}]}", 0, true},
		{"target reference", "metadata: {name: p, namespace: shop}, spec: {targetRef: {kind: Service, name: a}}", 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, c := convert(authorizationPolicy(t, strings.ReplaceAll(tc.about, "}, spec", "}\nspec")), "root")
			switch {
			case tc.none && (p != nil || c != nil):
				t.Errorf("%+v %+v, want nothing: it is the waypoint's", p, c)
			case !tc.none && (p == nil || p.Scope != tc.want):
				t.Errorf("%+v, want scope %v", p, tc.want)
			}
		})
	}
}

// P4-05 and istio#61126: what is said of a policy must be true.
func TestConvertWhatL4CannotJudge(t *testing.T) {
	const sees, waypoint = "ztunnel judges connections, it cannot judge ", " A waypoint can judge them, in a policy with targetRefs."
	l4 := mesh.Match{Namespaces: exactly("a")}
	for _, tc := range []struct {
		name, spec string
		want       []mesh.Rule
		message    string
	}{
		{"ALLOW drops the rule", `{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET], paths: [/x]}}]}, {from: [{source: {namespaces: [a]}}]}]}`,
			[]mesh.Rule{one(l4)}, sees + "methods, paths. spec.rules[0] is left out: what it alone would allow is refused, stricter than written." + waypoint},
		{"ALLOW drops all", `{rules: [{to: [{operation: {hosts: [x]}}]}, {when: [{key: "request.headers[a]", values: [b]}]}]}`,
			nil, sees + "hosts, request.headers[a]. Every rule is left out, so the policy allows nothing: stricter than written." + waypoint},
		{"DENY keeps what stands in the same match", `{action: DENY, rules: [{from: [{source: {namespaces: [a], requestPrincipals: ["*"]}}]}]}`,
			[]mesh.Rule{one(l4)}, sees + "requestPrincipals. spec.rules[0] is enforced without that, and denies more: stricter than written." + waypoint},
		{"DENY of ports and methods", `{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ["80"], notMethods: [GET]}}]}]}`,
			[]mesh.Rule{clauses(mesh.Match{DestinationPorts: []uint16{80}}, l4)}, sees + "notMethods. spec.rules[0] is enforced without that, and denies more: stricter than written." + waypoint},
		{"DENY of L7 alone", `{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ["*"]}}]}]}`,
			[]mesh.Rule{one(mesh.Match{})}, sees + "notRequestPrincipals. What is left of every rule matches nothing: the policy is inert, it denies nothing." + waypoint},
		{"DENY of a source and methods", `{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]}]}`,
			[]mesh.Rule{clauses(mesh.Match{}, l4)}, sees + "methods. What is left of every rule matches nothing: the policy is inert, it denies nothing." + waypoint},
		{"DENY with a condition of L7", `{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], when: [{key: connection.sni, values: [x]}]}, {from: [{source: {namespaces: [a]}}]}]}`,
			[]mesh.Rule{clauses(l4, mesh.Match{}), one(l4)}, sees + "connection.sni. spec.rules[0] is inert: what is left of it matches nothing, it denies nothing." + waypoint},
		{"DENY with alternatives", `{action: DENY, rules: [{from: [{source: {namespaces: [a]}}, {source: {remoteIpBlocks: [1.2.3.4]}}]}, {to: [{operation: {hosts: [x]}}]}, {to: [{operation: {ports: ["80"], hosts: [x]}}]}]}`,
			[]mesh.Rule{one(l4, mesh.Match{}), one(mesh.Match{}), one(mesh.Match{DestinationPorts: []uint16{80}})},
			sees + "hosts, remoteIpBlocks. spec.rules[1] is inert: what is left of it matches nothing, it denies nothing. " +
				"spec.rules[2] is enforced without that, and denies more: stricter than written. " +
				"spec.rules[0] has alternatives of which nothing is left: those deny nothing." + waypoint},
		{"trust domains", `{action: DENY, rules: [{}, {from: [{source: {namespaces: [a], notTrustDomains: [td]}}]}]}`,
			[]mesh.Rule{{}, one(l4)}, sees + "notTrustDomains. spec.rules[1] is enforced without that, and denies more: stricter than written." + waypoint},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, c := convert(authorizationPolicy(t, "metadata: {name: p, namespace: shop}\nspec: "+tc.spec), "istio-system")
			if diff := cmp.Diff(tc.want, p.Rules, equalPrefixes); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tc.message, c.Message); diff != "" || c.Reason != ReasonUnsupported || !c.Accepted || c.Field != "spec.rules" {
				t.Errorf("%s\n%+v", diff, c)
			}
		})
	}
}

func TestConvertDryRunAndActions(t *testing.T) {
	for _, tc := range []struct {
		name, about string
		served, dry bool
		reason      string
		message     string
	}{
		{"dry run", `metadata: {name: p, namespace: shop, annotations: {istio.io/dry-run: "true"}}`, true, true, ReasonAccepted, "Served to ztunnel as a dry run: what it matches is logged, nothing is decided by it."},
		{"no dry run", `metadata: {name: p, namespace: shop, annotations: {istio.io/dry-run: "false"}}` + "\nspec: {rules: [{}]}", true, false, ReasonAccepted, "Served to ztunnel as written."},
		{"no boolean", `metadata: {name: p, namespace: shop, annotations: {istio.io/dry-run: "yes"}}` + "\nspec: {rules: [{}]}", true, false, ReasonUnsupported, `The annotation istio.io/dry-run: "yes" is not a boolean: the policy is enforced.`},
		{"allow nothing", "metadata: {name: p, namespace: shop}", true, false, ReasonAccepted, "Served to ztunnel; without rules it allows nothing."},
		{"deny nothing", "metadata: {name: p, namespace: shop}\nspec: {action: DENY}", true, false, ReasonAccepted, "Served to ztunnel; without rules it denies nothing."},
		{"audit", "metadata: {name: p, namespace: shop}\nspec: {action: AUDIT}", false, false, ReasonUnsupported, "ztunnel knows the actions ALLOW and DENY only: this policy of action AUDIT has no effect."},
		{"custom", "metadata: {name: p, namespace: shop}\nspec: {action: CUSTOM, provider: {name: opa}}", false, false, ReasonUnsupported, "ztunnel knows the actions ALLOW and DENY only: this policy of action CUSTOM has no effect."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, c := convert(authorizationPolicy(t, tc.about), "istio-system")
			if (p != nil) != tc.served || p != nil && p.DryRun != tc.dry {
				t.Errorf("policy %+v", p)
			}
			if c.Accepted != tc.served || c.Reason != tc.reason || c.Message != tc.message {
				t.Errorf("%+v, want %s %q", c, tc.reason, tc.message)
			}
		})
	}
}
