// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/source/file"
)

// check decodes an object of kind whose spec is a line of YAML, and says what is wrong with it, by field.
func check(kind, spec string) []string {
	_, problems := file.Decode([]byte("apiVersion: security.istio.io/v1\nkind: " + kind + "\nmetadata: {name: p, namespace: shop}\nspec: " + spec + "\n"))
	var out []string
	for _, p := range problems {
		out = append(out, p.Field+": "+p.Err.Error())
	}
	slices.Sort(out)
	return out
}

func TestAuthorizationPolicyFields(t *testing.T) {
	for _, tc := range []struct {
		name, spec string
		want       []string
	}{
		{"nothing at all", "{}", nil},
		{"a rule that matches all", "{rules: [{}]}", nil},
		{"every field", `{selector: {matchLabels: {app: cart}}, action: DENY, rules: [{
			from: [{source: {principals: ["*"], notPrincipals: [a*], namespaces: ["*b"], notNamespaces: [c], ipBlocks: [10.0.0.1, "fd00::/8"], notIpBlocks: [10.0.0.0/8],
			remoteIpBlocks: [1.2.3.4], notRemoteIpBlocks: [1.2.3.0/24], requestPrincipals: ["*"], notRequestPrincipals: [x], trustDomains: [td], notTrustDomains: [other]}},
			{source: {serviceAccounts: [web, other/web], notServiceAccounts: [batch]}}],
			to: [{operation: {ports: ["80"], notPorts: ["65535"], hosts: [a.b], notHosts: [c.d], methods: [GET], notMethods: [PUT], paths: [/a], notPaths: [/b]}}],
			when: [{key: source.ip, values: [10.0.0.1]}, {key: destination.port, notValues: ["80"]}, {key: "request.headers[x-a]", values: [b]},
			{key: "request.auth.claims[iss]", values: [c]}, {key: connection.sni, values: [d]}, {key: experimental.envoy.filters.a.b, values: [e]}]}]}`, nil},
		{"ignored actions are sound", "{action: AUDIT, rules: [{}]}", nil},
		{"custom", "{action: CUSTOM, provider: {name: opa}, rules: [{}]}", nil},
		{"target references", "{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]}", nil},

		{"unknown field", "{rules: [{from: [{source: {principal: [a]}}]}]}", []string{"spec.rules[0].from[0].source.principal: unknown field"}},
		{"not a list", "{rules: [{from: [{source: {principals: a}}]}]}", []string{"spec.rules[0].from[0].source.principals: cannot be a string, wants a list"}},
		{"unknown action", "{action: REFUSE}", []string{`spec.action: "REFUSE" is not one of ALLOW, DENY, AUDIT, CUSTOM`}},
		{"action by number", "{action: 9}", []string{"spec.action: 9 is no action"}},
		{"custom without a provider", "{action: CUSTOM}", []string{"spec.provider.name: is missing, the action CUSTOM needs it"}},
		{"provider without custom", "{provider: {name: opa}}", []string{"spec.provider: can stand beside the action CUSTOM only"}},
		{"two targets", "{selector: {matchLabels: {app: a}}, targetRefs: [{kind: Service, name: a}]}", []string{"spec.selector: cannot stand beside targetRefs"}},
		{"old and new target", "{targetRef: {kind: Service, name: a}, targetRefs: [{kind: Service, name: a}]}", []string{"spec.targetRef: cannot stand beside targetRefs"}},
		{"target without a name", "{targetRefs: [{kind: Service}]}", []string{"spec.targetRefs[0].name: is missing"}},
		{"wildcard label", `{selector: {matchLabels: {app: "a*"}}}`, []string{"spec.selector.matchLabels[app]: labels are matched as a whole, without *"}},
		{"empty lists", "{rules: [{from: [], to: []}]}", []string{
			"spec.rules[0].from: is an empty list: leave it out if any is meant",
			"spec.rules[0].to: is an empty list: leave it out if any is meant",
		}},
		{"empty source", "{rules: [{}, {from: [{source: {}}]}]}", []string{"spec.rules[1].from[0].source: is empty: it needs one of principals, notPrincipals, namespaces, " +
			"notNamespaces, serviceAccounts, notServiceAccounts, ipBlocks, notIpBlocks, remoteIpBlocks, notRemoteIpBlocks, requestPrincipals, notRequestPrincipals, trustDomains, notTrustDomains"}},
		{"no operation", "{rules: [{to: [{}]}]}", []string{"spec.rules[0].to[0].operation: is empty: it needs one of ports, notPorts, hosts, notHosts, methods, notMethods, paths, notPaths"}},
		{"empty value", `{rules: [{from: [{source: {namespaces: [a, ""]}}]}]}`, []string{"spec.rules[0].from[0].source.namespaces[1]: is empty"}},
		{"bad addresses", `{rules: [{from: [{source: {ipBlocks: [10.0.0.256, 10.0.0.0/33], notIpBlocks: ["fe80::1%eth0"]}}]}]}`, []string{
			`spec.rules[0].from[0].source.ipBlocks[0]: "10.0.0.256" is neither an IP address nor a CIDR`,
			`spec.rules[0].from[0].source.ipBlocks[1]: "10.0.0.0/33" is neither an IP address nor a CIDR`,
			`spec.rules[0].from[0].source.notIpBlocks[0]: "fe80::1%eth0" is neither an IP address nor a CIDR`,
		}},
		{"bad ports", `{rules: [{to: [{operation: {ports: ["0", http], notPorts: ["65536"]}}]}]}`, []string{
			`spec.rules[0].to[0].operation.notPorts[0]: "65536" is not a port (1 to 65535)`,
			`spec.rules[0].to[0].operation.ports[0]: "0" is not a port (1 to 65535)`,
			`spec.rules[0].to[0].operation.ports[1]: "http" is not a port (1 to 65535)`,
		}},
		{"bad accounts", `{rules: [{from: [{source: {serviceAccounts: ["a/b/c", "a/", "*"], principals: [x]}}]}]}`, []string{
			`spec.rules[0].from[0].source.serviceAccounts: cannot stand beside principals or namespaces`,
			`spec.rules[0].from[0].source.serviceAccounts[0]: "a/b/c" is neither account nor namespace/account, without *`,
			`spec.rules[0].from[0].source.serviceAccounts[1]: "a/" is neither account nor namespace/account, without *`,
			`spec.rules[0].from[0].source.serviceAccounts[2]: "*" is neither account nor namespace/account, without *`,
		}},
		{"bad conditions", `{rules: [{when: [{key: source.user, values: [a]}, {key: "request.headers[]", values: [a]}, {values: [a]}, {key: source.ip}, {key: destination.port, values: [a], notValues: [b]}]}]}`, []string{
			`spec.rules[0].when[0].key: "source.user" is no attribute of a connection or request`,
			`spec.rules[0].when[1].key: "request.headers[]" is no attribute of a connection or request`,
			`spec.rules[0].when[2].key: is missing`,
			`spec.rules[0].when[3]: is empty: it needs one of values, notValues`,
			`spec.rules[0].when[4].notValues[0]: "b" is not a port (1 to 65535)`,
			`spec.rules[0].when[4].values[0]: "a" is not a port (1 to 65535)`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, check("AuthorizationPolicy", strings.ReplaceAll(tc.spec, "\n", " "))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPeerAuthenticationFields(t *testing.T) {
	for _, tc := range []struct {
		name, spec string
		want       []string
	}{
		{"nothing at all", "{}", nil},
		{"strict", "{mtls: {mode: STRICT}}", nil},
		{"ports", `{selector: {matchLabels: {app: cart}}, mtls: {mode: UNSET}, portLevelMtls: {8080: {mode: DISABLE}, "9000": {mode: PERMISSIVE}}}`, nil},

		{"unknown field", "{mtls: {mod: STRICT}}", []string{"spec.mtls.mod: unknown field"}},
		{"unknown mode", "{mtls: {mode: strict}}", []string{`spec.mtls.mode: "strict" is not one of UNSET, DISABLE, PERMISSIVE, STRICT`}},
		{"mode by number", "{mtls: {mode: 7}}", []string{"spec.mtls.mode: 7 is no mode"}},
		{"ports of nobody", "{portLevelMtls: {8080: {mode: STRICT}}}", []string{"spec.portLevelMtls: needs a selector: ports are those of certain workloads"}},
		{"port by name", "{selector: {matchLabels: {app: a}}, portLevelMtls: {http: {mode: STRICT}}}", []string{"spec.portLevelMtls[http]: the key is not a number from 0 to 4294967295"}},
		{"no ports", "{selector: {matchLabels: {app: a}}, portLevelMtls: {70000: {mode: STRICT}, 0: {mode: 9}}}", []string{
			"spec.portLevelMtls[0].mode: 9 is no mode", "spec.portLevelMtls[0]: 0 is not a port (1 to 65535)", "spec.portLevelMtls[70000]: 70000 is not a port (1 to 65535)",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, check("PeerAuthentication", tc.spec)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A lab writes objects as the typed encoder does; what it writes must be read back as the same.
func TestPoliciesSurviveTheirOwnEncoding(t *testing.T) {
	for _, text := range []string{
		"kind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop, uid: u}\nspec: {action: DENY, selector: {matchLabels: {app: a}}, rules: [{}, {from: [{source: {notPrincipals: ['*']}}], to: [{operation: {ports: ['80']}}], when: [{key: source.ip, values: [10.0.0.1]}]}]}",
		"kind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nstatus: {conditions: [{type: ZtunnelAccepted, status: 'True', observedGeneration: '7'}]}",
		"kind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}",
	} {
		first, problems := file.Decode([]byte("apiVersion: security.istio.io/v1\n" + text))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		data, err := json.Marshal(first)
		if err != nil {
			t.Fatal(err)
		}
		again, problems := file.Decode(data)
		if len(problems) > 0 {
			t.Fatalf("%s: %v", data, problems)
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(twice, data) {
			t.Errorf("%s\nbecame %s (%v)", data, twice, err)
		}
	}
}
