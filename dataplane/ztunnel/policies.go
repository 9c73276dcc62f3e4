// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"sync"

	"github.com/ambientlab/ambientlab/dataplane/authz"
	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// policies keeps the set of policies of a pod that names some itself, which takes time to arrange; all others are the
// catalog's.
type policies struct {
	mu         sync.Mutex
	self       *mesh.Workload
	generation uint64
	set        authz.Set
}

// of is the set for self in s.
func (c *policies) of(s *catalog.Snapshot, self *mesh.Workload) authz.Set {
	if len(self.AuthorizationPolicies) == 0 {
		return s.PolicySet(self)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.self != self || c.generation != s.PolicyGeneration() {
		c.self, c.generation, c.set = self, s.PolicyGeneration(), s.PolicySet(self)
	}
	return c.set
}
