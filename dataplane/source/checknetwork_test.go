// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/source/file"
)

func checkNetwork(spec string) []string {
	_, problems := file.Decode([]byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: " + spec + "\n"))
	var out []string
	for _, p := range problems {
		out = append(out, p.Error())
	}
	slices.Sort(out)
	return out
}

func TestNetworkPolicyFields(t *testing.T) {
	const key = "NetworkPolicy shop/p: spec."
	for _, tc := range []struct {
		name, spec string
		want       []string
	}{
		{"nothing at all", "{}", nil},
		{"every field", `{podSelector: {matchLabels: {app: cart}, matchExpressions: [{key: tier, operator: NotIn, values: [a, b]}, {key: x, operator: Exists}]}, policyTypes: [Ingress, Egress],
			ingress: [{}, {from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {a: b}}, podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.3.4/32]}}],
			ports: [{}, {port: 80}, {port: http, protocol: UDP}, {port: 8000, endPort: 9000, protocol: SCTP}]}],
			egress: [{to: [{ipBlock: {cidr: "fd00::/8"}}], ports: [{protocol: TCP}]}]}`, nil},
		{"unknown field", "{podSelector: {matchLabel: {app: a}}}", []string{key + "podSelector.matchLabel: unknown field"}},
		{"bad types", "{policyTypes: [Ingress, ingress]}", []string{key + `policyTypes[1]: "ingress" is neither Ingress nor Egress`}},
		{"bad operator", "{podSelector: {matchExpressions: [{key: a, operator: Like, values: [b]}]}}", []string{
			key + `podSelector: "Like" is not a valid label selector operator`}},
		{"empty peer", "{ingress: [{from: [{}]}]}", []string{key + "ingress[0].from[0]: is empty: it needs a podSelector, a namespaceSelector or an ipBlock"}},
		{"two kinds of peer", "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}", []string{key + "egress[0].to[0].ipBlock: cannot stand beside a selector"}},
		{"bad blocks", `{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0, except: [10.0.0.0/8]}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8, 11.0.0.0/16, "fd00::/64"]}}]}]}`, []string{
			key + "ingress[0].from[0].ipBlock.cidr: \"10.0.0.0\" is not a CIDR like 10.0.0.0/8",
			key + "ingress[0].from[1].ipBlock.except[0]: 10.0.0.0/8 is not a part of 10.0.0.0/8",
			key + "ingress[0].from[1].ipBlock.except[1]: 11.0.0.0/16 is not a part of 10.0.0.0/8",
			key + "ingress[0].from[1].ipBlock.except[2]: fd00::/64 is not a part of 10.0.0.0/8",
		}},
		{"bad ports", "{ingress: [{ports: [{protocol: ICMP}, {port: 0}, {port: Not-A-Name}, {port: http, endPort: 90}, {port: 90, endPort: 80}, {endPort: 80}]}]}", []string{
			key + "ingress[0].ports[0].protocol: \"ICMP\" is none of TCP, UDP, SCTP",
			key + "ingress[0].ports[1].port: 0 is not a port (1 to 65535)",
			key + `ingress[0].ports[2].port: "Not-A-Name" is not a name of a port`,
			key + "ingress[0].ports[3].endPort: needs a port by number, which begins the range",
			key + "ingress[0].ports[4].endPort: 80 is not from 90 to 65535",
			key + "ingress[0].ports[5].endPort: needs a port by number, which begins the range",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, checkNetwork(tc.spec)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}
