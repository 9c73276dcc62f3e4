// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"
	"fmt"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// namespace finds the network namespace of a target.
func (s *site) namespace(t *lab.Target) (*netns.NS, error) {
	set := 0
	for _, is := range []bool{!t.Pod.IsZero(), t.Node != "", t.External != ""} {
		if is {
			set++
		}
	}
	if set != 1 {
		return nil, errors.New("a target is one pod, one node or one external host")
	}
	switch {
	case t.Node != "":
		if n := s.nodes[t.Node]; n != nil {
			return n.ns, nil
		}
		return nil, fmt.Errorf("no node %q", t.Node)
	case t.External != "":
		s.mu.Lock()
		defer s.mu.Unlock()
		if e := s.externals[t.External]; e != nil {
			return e.ns, nil
		}
		return nil, fmt.Errorf("no external host %q", t.External)
	}
	p, err := s.pod(t.Pod)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ns == nil {
		return nil, fmt.Errorf("pod %s has not started yet", t.Pod)
	}
	return p.ns, nil
}

func (s *site) capture(ctx context.Context, c *client, t *lab.Target) (int, error) {
	return 0, errors.New("captures: not built yet")
}
