// SPDX-License-Identifier: Apache-2.0

package control

import (
	"slices"

	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Names of policies that stand for PeerAuthentications, as upstream has them. No object has an underscore in its name.
const (
	staticStrict  = "istio_converted_static_strict"
	convertedPeer = "converted_peer_authentication_"
)

// peers finds the PeerAuthentication that holds for a workload: of those that select it, else of its namespace, else of
// the mesh. Of several of one rank the oldest counts.
type peers struct {
	mesh       *securityv1.PeerAuthentication
	namespaces map[string]*securityv1.PeerAuthentication
	selected   *selectors[*peerGuard]
	strict     []string // the static policy's key
}

// peerGuard is a PeerAuthentication with a selector.
type peerGuard struct {
	object *securityv1.PeerAuthentication
	names  []string // keys of the policies that its workloads name
}

func (p *peerGuard) selects() (namespace string, selector map[string]string) {
	return p.object.Namespace, p.object.Spec.GetSelector().GetMatchLabels()
}

// peerAuthentications ranks PeerAuthentications and makes policies of them.
func (c *compiler) peerAuthentications() *peers {
	p := &peers{namespaces: map[string]*securityv1.PeerAuthentication{}}
	if len(c.objects.PeerAuthentications) == 0 {
		p.selected = newSelectors[*peerGuard](nil)
		return p
	}
	static := refusePlaintext(c.RootNamespace, staticStrict, mesh.Rule{Clauses: []mesh.Clause{{Matches: []mesh.Match{plaintext()}}}})
	c.out.Policies = append(c.out.Policies, static)
	p.strict = []string{static.Key()}
	var selecting []*peerGuard
	for _, o := range c.objects.PeerAuthentications {
		switch wide := len(o.Spec.GetSelector().GetMatchLabels()) == 0; {
		case wide && o.Namespace == c.RootNamespace:
			p.mesh = oldest(p.mesh, o)
		case wide:
			p.namespaces[o.Namespace] = oldest(p.namespaces[o.Namespace], o)
		case o.Namespace != c.RootNamespace:
			selecting = append(selecting, &peerGuard{object: o})
		}
	}
	for _, s := range selecting {
		strict, ports := p.judge(s.object)
		switch {
		case len(ports) > 0:
			policy := refusePlaintext(s.object.Namespace, convertedPeer+s.object.Name, portRules(strict, ports)...)
			c.out.Policies = append(c.out.Policies, policy)
			s.names = []string{policy.Key()}
		case strict:
			s.names = p.strict
		}
	}
	p.selected = newSelectors(selecting)
	for _, o := range c.objects.PeerAuthentications {
		c.report(o, p.condition(o, c.RootNamespace))
	}
	return p
}

// oldest is the object of two that counts; names decide between twins, so that the order of maps does not.
func oldest(a, b *securityv1.PeerAuthentication) *securityv1.PeerAuthentication {
	if a == nil {
		return b
	}
	switch a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time) {
	case -1:
		return a
	case 1:
		return b
	}
	if a.Name < b.Name {
		return a
	}
	return b
}

// of lists the policies by which a workload's PeerAuthentication is enforced. The result is shared.
func (p *peers) of(namespace string, labels map[string]string) []string {
	var first *peerGuard
	for _, s := range p.selected.of(namespace, labels) {
		if first == nil || oldest(first.object, s.object) == s.object {
			first = s
		}
	}
	switch {
	case first != nil:
		return first.names
	case p.inherited(namespace):
		return p.strict
	default:
		return nil
	}
}

// inherited reports whether plaintext is refused in a namespace, where no selector says otherwise.
func (p *peers) inherited(namespace string) bool {
	for _, o := range [...]*securityv1.PeerAuthentication{p.namespaces[namespace], p.mesh} {
		if o == nil {
			continue
		}
		if mode := o.Spec.GetMtls().GetMode(); mode != security.PeerAuthentication_MutualTLS_UNSET {
			return mode == security.PeerAuthentication_MutualTLS_STRICT
		}
	}
	return false
}

// judge reports whether o refuses plaintext, and the ports on which it does the opposite.
func (p *peers) judge(o *securityv1.PeerAuthentication) (strict bool, ports []uint16) {
	strict = p.inherited(o.Namespace)
	if mode := o.Spec.GetMtls().GetMode(); mode != security.PeerAuthentication_MutualTLS_UNSET {
		strict = mode == security.PeerAuthentication_MutualTLS_STRICT
	}
	for port, m := range o.Spec.GetPortLevelMtls() {
		mode := m.GetMode()
		if mode != security.PeerAuthentication_MutualTLS_UNSET && (mode == security.PeerAuthentication_MutualTLS_STRICT) != strict {
			ports = append(ports, uint16(port))
		}
	}
	slices.Sort(ports)
	return strict, ports
}

// plaintext matches peers that show no certificate.
func plaintext() mesh.Match {
	return mesh.Match{NotPrincipals: []mesh.StringMatch{{Kind: mesh.MatchPresence}}}
}

func refusePlaintext(namespace, name string, rules ...mesh.Rule) *mesh.Policy {
	return &mesh.Policy{Name: name, Namespace: namespace, Scope: mesh.ScopePolicyWorkload, Action: mesh.Deny, Rules: rules}
}

// portRules refuse plaintext on all but the given ports if strict, else on these alone. Both halves must be in one
// policy: any DENY that matches is final, so that an exception cannot stand in another.
func portRules(strict bool, ports []uint16) []mesh.Rule {
	if strict {
		rule := mesh.Rule{Clauses: []mesh.Clause{{Matches: []mesh.Match{plaintext()}}}}
		for _, p := range ports {
			rule.Clauses = append(rule.Clauses, mesh.Clause{Matches: []mesh.Match{{NotDestinationPorts: []uint16{p}}}})
		}
		return []mesh.Rule{rule}
	}
	var rules []mesh.Rule
	for _, p := range ports {
		m := plaintext()
		m.DestinationPorts = []uint16{p}
		rules = append(rules, mesh.Rule{Clauses: []mesh.Clause{{Matches: []mesh.Match{m}}}})
	}
	return rules
}

// condition says what became of o.
func (p *peers) condition(o *securityv1.PeerAuthentication, root string) *Condition {
	c := conditionOf("PeerAuthentication", o)
	wide := len(o.Spec.GetSelector().GetMatchLabels()) == 0
	winner := p.namespaces[o.Namespace]
	if o.Namespace == root {
		winner = p.mesh
	}
	switch {
	case !wide && o.Namespace == root:
		return c.unsupported(false, "spec.selector", "A selector in the root namespace selects nothing in ambient mode: the policy is inert.")
	case wide && winner != o:
		c.Accepted, c.Reason, c.Field = false, ReasonConflict, "spec"
		c.Message = "PeerAuthentication " + winner.Namespace + "/" + winner.Name + " covers the same workloads and is older: this one is inert."
	case disables(&o.Spec):
		return c.unsupported(true, "spec", "DISABLE acts as PERMISSIVE: plaintext is accepted, and so is HBONE.")
	default:
		c.Message = "Served to ztunnel as written."
	}
	return c
}

func disables(s *security.PeerAuthentication) bool {
	if s.GetMtls().GetMode() == security.PeerAuthentication_MutualTLS_DISABLE {
		return true
	}
	for _, m := range s.GetPortLevelMtls() {
		if m.GetMode() == security.PeerAuthentication_MutualTLS_DISABLE {
			return true
		}
	}
	return false
}
