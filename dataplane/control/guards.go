// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"slices"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// guards finds the policies that a workload must name, because nothing in them says whom they cover.
type guards struct {
	selected *selectors[*guard]
	peers    *peers
}

// guard is an AuthorizationPolicy with a selector.
type guard struct {
	key       string
	namespace string // "" for those of the root namespace, which select everywhere
	selector  map[string]string
}

func (g *guard) selects() (namespace string, selector map[string]string) {
	return g.namespace, g.selector
}

// policies converts policy objects, before workloads are made.
func (c *compiler) policies() {
	if len(c.objects.AuthorizationPolicies)+len(c.objects.PeerAuthentications) == 0 {
		return
	}
	c.out.Policies = make([]*mesh.Policy, 0, len(c.objects.AuthorizationPolicies)+1)
	c.out.Conditions = make([]Condition, 0, len(c.objects.AuthorizationPolicies)+len(c.objects.PeerAuthentications))
	var selected []*guard
	for _, p := range c.objects.AuthorizationPolicies {
		policy, condition := convert(p, c.RootNamespace)
		c.report(p, condition)
		if policy == nil {
			continue
		}
		c.out.Policies = append(c.out.Policies, policy)
		if policy.Scope == mesh.ScopePolicyWorkload {
			selected = append(selected, c.guard(p, policy))
		}
	}
	c.guards = &guards{selected: newSelectors(selected), peers: c.peerAuthentications()}
	slices.SortFunc(c.out.Policies, func(a, b *mesh.Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

func (c *compiler) guard(p *securityv1.AuthorizationPolicy, policy *mesh.Policy) *guard {
	g := &guard{key: policy.Key(), namespace: p.Namespace, selector: p.Spec.GetSelector().GetMatchLabels()}
	if p.Namespace == c.RootNamespace {
		g.namespace = ""
	}
	return g
}

// of lists the policies that a workload names, sorted. The result may be shared; g may be nil.
func (g *guards) of(namespace string, labels map[string]string) []string {
	if g == nil {
		return nil
	}
	var out []string
	for _, from := range [...]string{"", namespace} {
		for _, s := range g.selected.of(from, labels) {
			out = append(out, s.key)
		}
	}
	peers := g.peers.of(namespace, labels)
	if len(out) == 0 {
		return peers
	}
	out = append(out, peers...)
	slices.Sort(out)
	return out
}
