// SPDX-License-Identifier: Apache-2.0

package authz

import (
	"slices"
	"sync"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Index is an immutable list of policies, arranged so that a connection is compared with few of them. The zero value and
// nil hold none.
//
// A rule that can match only connections of certain principals, accounts, namespaces, addresses or ports is filed under
// those, and looked at only for such a connection; of several ways to file a rule the one is taken whose places hold the
// fewest others. What can be filed nowhere (a rule of Not fields alone, say) is looked at every time.
//
// It is arranged when it is first asked, or by Set.Prepare: most of a mesh's policies are about pods of other nodes.
type Index struct {
	policies []*mesh.Policy
	allow    bool // some policy allows, and is no dry run

	// Set by arrange.
	arranged   sync.Once
	everywhere []ref

	principals texts
	namespaces texts
	accounts   map[mesh.ServiceAccountMatch][]ref
	sources    prefixes
	targets    prefixes
	ports      map[uint16][]ref
}

// ref names a rule.
type ref struct{ policy, rule int32 }

// few policies are not worth arranging: comparing is quicker than looking up.
const few = 8

// NewIndex holds policies, whose order decides which of several matching ones is named. It keeps the slice.
func NewIndex(policies []*mesh.Policy) *Index {
	allows := func(p *mesh.Policy) bool { return p.Action == mesh.Allow && !p.DryRun }
	return &Index{policies: policies, allow: slices.ContainsFunc(policies, allows)}
}

func (x *Index) arrange() {
	policies, b := x.policies, builder{}
	for _, p := range policies {
		for j := range p.Rules {
			if len(policies) > few {
				b.count(&p.Rules[j])
			}
		}
	}
	for i, p := range policies {
		for j := range p.Rules {
			if to := (ref{int32(i), int32(j)}); len(policies) > few {
				b.file(x, &p.Rules[j], to)
			} else {
				x.everywhere = append(x.everywhere, to)
			}
		}
	}
}

// Policies is the list; it must not be written to.
func (x *Index) Policies() []*mesh.Policy {
	if x == nil {
		return nil
	}
	return x.policies
}

// Set is the indices that hold the policies of one workload, in their order; nil ones hold none.
type Set [3]*Index

// Prepare makes the first Decide as quick as every other.
func (s Set) Prepare() {
	for _, x := range s {
		if x != nil {
			x.arranged.Do(x.arrange)
		}
	}
}

// Decide judges c by the policies of all indices, which must be the whole set for the destination workload. A matching DENY
// wins over any ALLOW; of several matching policies of one action the first is named. Dry-run policies decide nothing.
// It allocates only to report dry-run matches, and to arrange what was not prepared.
func (s Set) Decide(c Connection) Decision {
	d := Decision{Allowed: true, Reason: NoAllowPolicies}
	var allow *mesh.Policy
	haveAllow := false
	s.Prepare()
	for _, x := range s {
		if x == nil {
			continue
		}
		f := finder{x: x, c: c, deny: none, allow: none}
		f.find()
		if d.By == nil && f.deny != none {
			d.By = x.policies[f.deny]
		}
		if allow == nil && f.allow != none {
			allow = x.policies[f.allow]
		}
		haveAllow = haveAllow || x.allow
		d.DryRun = f.appendDryRun(d.DryRun)
	}
	switch {
	case d.By != nil:
		d.Allowed, d.Reason = false, DenyMatched
	case allow != nil:
		d.By, d.Reason = allow, AllowMatched
	case haveAllow:
		d.Allowed, d.Reason = false, NoRuleMatched
	}
	return d
}

const none = int32(1<<31 - 1)

// finder looks through an index for one connection.
type finder struct {
	x           *Index
	c           Connection
	deny, allow int32 // the first policies that match
	dryRun      []int32
}

func (f *finder) find() {
	x, c := f.x, &f.c
	f.try(x.everywhere)
	if !c.Source.IsZero() {
		if !x.principals.empty() {
			var room [192]byte
			f.text(&x.principals, appendPrincipal(room[:0], &c.Source))
		}
		if len(x.accounts) > 0 {
			f.try(x.accounts[mesh.ServiceAccountMatch{Namespace: c.Source.Namespace, ServiceAccount: c.Source.ServiceAccount}])
		}
	}
	if !x.namespaces.empty() {
		var room [64]byte
		f.text(&x.namespaces, append(room[:0], c.Source.Namespace...))
	}
	f.prefix(&x.sources, c.SrcIP)
	f.prefix(&x.targets, c.Dst.Addr())
	if len(x.ports) > 0 {
		f.try(x.ports[c.Dst.Port()])
	}
}

// appendPrincipal is Identity.Principal without allocating.
func appendPrincipal(b []byte, id *mesh.Identity) []byte {
	for _, s := range [...]string{id.TrustDomain, "/ns/", id.Namespace, "/sa/", id.ServiceAccount} {
		b = append(b, s...)
	}
	return b
}

// try compares the connection with rules, except where their policy would change nothing.
func (f *finder) try(rules []ref) {
	for _, r := range rules {
		p := f.x.policies[r.policy]
		switch {
		case p.DryRun:
			if !slices.Contains(f.dryRun, r.policy) && ruleMatches(&p.Rules[r.rule], &f.c) {
				f.dryRun = append(f.dryRun, r.policy)
			}
		case p.Action == mesh.Deny:
			if r.policy < f.deny && ruleMatches(&p.Rules[r.rule], &f.c) {
				f.deny = r.policy
			}
		default:
			if r.policy < f.allow && ruleMatches(&p.Rules[r.rule], &f.c) {
				f.allow = r.policy
			}
		}
	}
}

func (f *finder) appendDryRun(names []string) []string {
	slices.Sort(f.dryRun)
	for _, i := range f.dryRun {
		names = append(names, f.x.policies[i].Key())
	}
	return names
}
