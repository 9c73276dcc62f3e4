// SPDX-License-Identifier: Apache-2.0

package authz_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/authz"
	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// TestPoliciesOfAWorkloadAgreeWithModel adds what chooses the policies that a decision is made by: their scope. The model
// asks of every policy that there is whether it covers the workload; the catalog has them indexed.
func TestPoliciesOfAWorkloadAgreeWithModel(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	outcomes, covered := map[authz.Reason]int{}, map[mesh.PolicyScope]int{}
	for range 5_000 {
		all, c := authz.RandomCase(r)
		w := &mesh.Workload{UID: "w", Name: "w", Namespace: []string{"a", "b"}[r.IntN(2)]}
		for _, p := range all {
			if r.IntN(2) == 0 { // workloads are told which selectors choose them
				w.AuthorizationPolicies = append(w.AuthorizationPolicies, p.Key())
			}
		}
		store := catalog.New()
		store.Apply(catalog.Delta{Workloads: []*mesh.Workload{w}, Policies: all})
		var set []*mesh.Policy
		for _, p := range all {
			if p.Scope == mesh.ScopePolicyGlobal || p.Scope == mesh.ScopePolicyNamespace && p.Namespace == w.Namespace || slices.Contains(w.AuthorizationPolicies, p.Key()) {
				set = append(set, p)
				covered[p.Scope]++
			}
		}
		got, want := store.Load().PolicySet(w).Decide(c), authz.Model(set, c)
		outcomes[got.Reason]++
		if got.Allowed != want {
			t.Fatalf("decided %v, the model says %v for %+v of %+v\n%s", got, want, c, w, cmp.Diff([]*mesh.Policy{}, all))
		}
	}
	for reason := authz.NoAllowPolicies; reason <= authz.NoRuleMatched; reason++ {
		if outcomes[reason] < 50 {
			t.Errorf("only %d cases of %q: the generator proves too little", outcomes[reason], reason)
		}
	}
	for s := mesh.ScopePolicyGlobal; s <= mesh.ScopePolicyWorkload; s++ {
		if covered[s] < 1000 {
			t.Errorf("only %d policies of scope %v cover the workload", covered[s], s)
		}
	}
}
