// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies/nodenet/policy"
)

// writePolicies enforces NetworkPolicy on every node, as a CNI project would; what is so already is not written. It returns what
// policies have no part in it, sorted. A lab that never had a policy has no table to look at. Owned by the one that passes.
func (s *site) writePolicies(ctx context.Context, o *source.Objects) (problems []string, err error) {
	c := policy.Objects(o)
	if len(c.Policies) == 0 && !s.control.policed {
		return nil, nil
	}
	var mu sync.Mutex
	err = parallel(s.nodeList(), func(n *node) error {
		here := c
		here.Node, here.PodSubnets = n.name, n.subnets
		plan := policy.NewPlan(here)
		mu.Lock()
		for _, p := range plan.Problems {
			problems = append(problems, p.Error())
		}
		mu.Unlock()
		_, err := policy.Apply(ctx, n.ns, plan)
		return err
	})
	s.control.policed = err != nil || len(c.Policies) > 0
	slices.Sort(problems)
	return slices.Compact(problems), err // every node has the same
}

// awaitPolicies holds a pod's processes back until the rules of its addresses stand, if there is a policy at all. Until then
// they are closed: its link is up before, but an address that no pod is known to have gets nothing through.
func (s *site) awaitPolicies(ctx context.Context, p *pod) error {
	for wait := 20 * time.Millisecond; len(s.snapshot().NetworkPolicies) > 0; wait = min(2*wait, time.Second) {
		err := s.control.flush(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("connect pod %s: wait for its NetworkPolicy rules: %w", p.ref, err)
		}
		s.log.Warn("NetworkPolicy rules do not stand, the pod waits", "pod", p.ref, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}
