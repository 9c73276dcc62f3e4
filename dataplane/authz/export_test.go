// SPDX-License-Identifier: Apache-2.0

package authz

import (
	"math/rand/v2"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Model is the slow restatement of the rules, for tests that need package catalog, which imports this one.
var Model = model

// RandomCase draws policies of few namespaces and all scopes, and a connection that they may be about.
func RandomCase(r *rand.Rand) ([]*mesh.Policy, Connection) {
	g := gen{r}
	var all []*mesh.Policy
	for i := range g.IntN(6) {
		p := g.policy(i)
		p.Namespace, p.Scope = pick(g, "a", "b", "root"), pick(g, mesh.ScopePolicyGlobal, mesh.ScopePolicyNamespace, mesh.ScopePolicyWorkload)
		all = append(all, p)
	}
	return all, g.connection()
}
