// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"errors"
	"fmt"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// place is the inside of a target: its network namespace, and the init that starts processes in it.
type place struct {
	ns   *netns.NS
	init *pause.Handle
}

// place finds a target.
func (s *site) place(t *lab.Target) (place, error) {
	set := 0
	for _, is := range []bool{!t.Pod.IsZero(), t.Node != "", t.External != ""} {
		if is {
			set++
		}
	}
	if set != 1 {
		return place{}, errors.New("a target is one pod, one node or one external host")
	}
	switch {
	case t.Node != "":
		n, err := s.node(t.Node)
		if err != nil {
			return place{}, err
		}
		return place{n.ns, n.init}, nil
	case t.External != "":
		s.mu.Lock()
		defer s.mu.Unlock()
		if e := s.externals[t.External]; e != nil {
			return place{e.ns, e.init}, nil
		}
		return place{}, fmt.Errorf("no external host %q", t.External)
	}
	p, err := s.pod(t.Pod)
	if err != nil {
		return place{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ns == nil {
		return place{}, fmt.Errorf("pod %s has not started yet", t.Pod)
	}
	return place{p.ns, p.init}, nil
}
