// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func (e *edit) putPolicy(p *mesh.Policy) {
	e.intern.policy(p)
	same := func(v *mesh.Policy) bool { return v.Namespace == p.Namespace && v.Name == p.Name }
	if old, ok := e.snap.policies.put(e.epoch, hashPair(p.Namespace, p.Name), p, same); ok {
		e.unindexPolicy(old)
	}
	e.indexPolicy(p)
}

func (e *edit) removePolicy(key string) {
	ns, name, _ := strings.Cut(key, "/")
	old, ok := e.snap.policies.remove(e.epoch, hashPair(ns, name), func(v *mesh.Policy) bool {
		return v.Namespace == ns && v.Name == name
	})
	if ok {
		e.unindexPolicy(old)
	}
}

func (e *edit) indexPolicy(p *mesh.Policy) {
	switch p.Scope {
	case mesh.ScopePolicyGlobal:
		e.snap.global = insertPolicy(e.snap.global, p)
		e.globals = true
	case mesh.ScopePolicyNamespace:
		own := e.ownPolicies(p.Namespace)
		e.putScope(p.Namespace, insertPolicy(own, p))
	}
}

func (e *edit) unindexPolicy(p *mesh.Policy) {
	switch p.Scope {
	case mesh.ScopePolicyGlobal:
		e.snap.global = deletePolicy(e.snap.global, p)
		e.globals = true
	case mesh.ScopePolicyNamespace:
		own := e.ownPolicies(p.Namespace)
		e.putScope(p.Namespace, deletePolicy(own, p))
	}
}

func (e *edit) ownPolicies(ns string) []*mesh.Policy {
	scope, ok := e.snap.scopes.get(hashString(ns), func(v *policyScope) bool { return v.ns == ns })
	if !ok {
		return nil
	}
	return scope.all[:scope.own]
}

// putScope stores own, with the global policies behind them.
func (e *edit) putScope(ns string, own []*mesh.Policy) {
	same := func(v *policyScope) bool { return v.ns == ns }
	if len(own) == 0 {
		e.snap.scopes.remove(e.epoch, hashString(ns), same)
		return
	}
	scope := &policyScope{ns: ns, own: len(own), all: slices.Concat(own, e.snap.global)}
	e.snap.scopes.put(e.epoch, hashString(ns), scope, same)
}

// finish renews what depends on several objects of the edit: a change of the global policies reaches every namespace.
func (e *edit) finish() {
	if !e.globals {
		return
	}
	for _, scope := range slices.Collect(e.snap.scopes.all()) {
		e.putScope(scope.ns, scope.all[:scope.own])
	}
}

// insertPolicy and deletePolicy copy: the old slice belongs to a snapshot.
func insertPolicy(s []*mesh.Policy, p *mesh.Policy) []*mesh.Policy {
	i, _ := slices.BinarySearchFunc(s, p, comparePolicies)
	return slices.Concat(s[:i], []*mesh.Policy{p}, s[i:])
}

func deletePolicy(s []*mesh.Policy, p *mesh.Policy) []*mesh.Policy {
	out := make([]*mesh.Policy, 0, len(s))
	for _, v := range s {
		if v != p {
			out = append(out, v)
		}
	}
	return out
}
