// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/authz"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// PolicySet is the policies that apply to w, ready to judge connections: those of its namespace, the global ones and those
// that it names. A name that is not known (yet) is left out, as upstream does. It makes nothing unless w names policies
// itself: then a caller with many connections keeps the set for as long as w and PolicyGeneration stay what they are.
func (s *Snapshot) PolicySet(w *mesh.Workload) authz.Set {
	set := authz.Set{s.namespacePolicies(w.Namespace), s.global, nil}
	if named := s.named(w); len(named) > 0 {
		set[2] = authz.NewIndex(named)
	}
	return set
}

// PolicyGeneration is a number that differs from an earlier snapshot's if any policy does.
func (s *Snapshot) PolicyGeneration() uint64 { return s.policyGen }

// namespacePolicies may be nil.
func (s *Snapshot) namespacePolicies(ns string) *authz.Index {
	scope, ok := s.scopes.get(hashString(ns), func(p *policyScope) bool { return p.ns == ns })
	if !ok {
		return nil
	}
	return scope.index
}

// named are the policies of scope workload, or any other that has not been counted already, which w names.
func (s *Snapshot) named(w *mesh.Workload) []*mesh.Policy {
	if len(w.AuthorizationPolicies) == 0 {
		return nil
	}
	var out []*mesh.Policy
	seen := make(map[*mesh.Policy]bool, len(w.AuthorizationPolicies))
	for _, name := range w.AuthorizationPolicies {
		p := s.Policy(name)
		if p == nil || seen[p] {
			continue
		}
		seen[p] = true
		if p.Scope == mesh.ScopePolicyGlobal || (p.Scope == mesh.ScopePolicyNamespace && p.Namespace == w.Namespace) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// policyEdit is what becomes of the policies in one edit. Indices are built once, at its end.
type policyEdit struct {
	changed bool
	scopes  map[string]*scopeEdit // by namespace
	global  *scopeEdit
}

// scopeEdit is a list of policies that is being changed.
type scopeEdit struct {
	list []*mesh.Policy // a copy; added ones behind
	gone map[*mesh.Policy]bool
}

func (e *edit) putPolicy(p *mesh.Policy) {
	e.intern.policy(p)
	same := func(v *mesh.Policy) bool { return v.Namespace == p.Namespace && v.Name == p.Name }
	if old, ok := e.snap.policies.put(e.epoch, hashPair(p.Namespace, p.Name), p, same); ok {
		e.dropFromScope(old)
	}
	e.policies.changed = true
	if s := e.scope(p); s != nil {
		s.list = append(s.list, p)
	}
}

func (e *edit) removePolicy(key string) {
	ns, name, _ := strings.Cut(key, "/")
	old, ok := e.snap.policies.remove(e.epoch, hashPair(ns, name), func(v *mesh.Policy) bool {
		return v.Namespace == ns && v.Name == name
	})
	if ok {
		e.policies.changed = true
		e.dropFromScope(old)
	}
}

func (e *edit) dropFromScope(p *mesh.Policy) {
	s := e.scope(p)
	if s == nil {
		return
	}
	if s.gone == nil {
		s.gone = map[*mesh.Policy]bool{}
	}
	s.gone[p] = true
}

// scope is the list that p belongs to by its scope; nil if only workloads that name p have it.
func (e *edit) scope(p *mesh.Policy) *scopeEdit {
	x := &e.policies
	switch p.Scope {
	case mesh.ScopePolicyGlobal:
		if x.global == nil {
			x.global = &scopeEdit{list: slices.Clone(e.snap.global.Policies())}
		}
		return x.global
	case mesh.ScopePolicyNamespace:
		if x.scopes[p.Namespace] == nil {
			if x.scopes == nil {
				x.scopes = map[string]*scopeEdit{}
			}
			x.scopes[p.Namespace] = &scopeEdit{list: slices.Clone(e.snap.namespacePolicies(p.Namespace).Policies())}
		}
		return x.scopes[p.Namespace]
	}
	return nil
}

// index is nil if nothing is left.
func (s *scopeEdit) index() *authz.Index {
	list := slices.DeleteFunc(s.list, func(p *mesh.Policy) bool { return s.gone[p] })
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, comparePolicies)
	return authz.NewIndex(slices.Clip(list))
}

// finish makes what depends on several objects of the edit, and gives back what it needed only meanwhile.
func (e *edit) finish() {
	e.snap.workloads.trim(e.epoch)
	e.snap.names.trim(e.epoch)
	e.snap.addrs.trim(e.epoch)
	if !e.policies.changed {
		return
	}
	e.snap.policyGen = e.epoch
	if e.policies.global != nil {
		e.snap.global = e.policies.global.index()
	}
	for ns, s := range e.policies.scopes {
		same := func(v *policyScope) bool { return v.ns == ns }
		if index := s.index(); index != nil {
			e.snap.scopes.put(e.epoch, hashString(ns), &policyScope{ns: ns, index: index}, same)
		} else {
			e.snap.scopes.remove(e.epoch, hashString(ns), same)
		}
	}
}
