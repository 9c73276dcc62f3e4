// SPDX-License-Identifier: Apache-2.0

package control

import (
	"maps"
	"slices"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// binding is a service together with what finds its endpoints.
type binding struct {
	service  *mesh.Service
	key      string
	selector map[string]string
	ports    []bindingPort // like service.Ports
	entry    bool          // from a ServiceEntry, whose rules for port names differ
}

type bindingPort struct {
	service    uint16
	target     uint16 // 0 if it has a name only
	name       string
	targetName string
}

type label struct{ namespace, key, value string }

// selectors finds the services that select a set of labels. Each service is filed under the one pair of its selector
// that the fewest services share: a pair such as team=shop that all have would make every look-up a walk over all.
type selectors struct{ by map[label][]*binding }

func newSelectors(all []*binding) *selectors {
	count := map[label]int{}
	for _, b := range all {
		for k, v := range b.selector {
			count[label{b.service.Namespace, k, v}]++
		}
	}
	s := &selectors{by: map[label][]*binding{}}
	for _, b := range all {
		var best label
		for _, k := range slices.Sorted(maps.Keys(b.selector)) {
			l := label{b.service.Namespace, k, b.selector[k]}
			if best == (label{}) || count[l] < count[best] {
				best = l
			}
		}
		if best != (label{}) {
			s.by[best] = append(s.by[best], b)
		}
	}
	return s
}

// of lists the services of a namespace that select labels. A selector without pairs selects nothing.
func (s *selectors) of(namespace string, labels map[string]string) []*binding {
	var out []*binding
	for k, v := range labels {
		for _, b := range s.by[label{namespace, k, v}] {
			if subset(b.selector, labels) {
				out = append(out, b)
			}
		}
	}
	return out
}

func subset(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// member makes a workload an endpoint of b. lookup finds a port of the workload by its name; with byName, one that has
// the name of the service's port is taken too. A service port that the workload does not serve is left out.
func (b *binding) member(lookup func(name string) (uint16, bool), byName bool) mesh.Membership {
	m := mesh.Membership{Key: b.key, Ports: make([]mesh.PortMap, 0, len(b.ports))}
	for _, p := range b.ports {
		target := p.target
		switch {
		case p.targetName != "":
			named, ok := lookup(p.targetName)
			if !ok {
				continue
			}
			target = named
		case byName && p.name != "":
			if named, ok := lookup(p.name); ok {
				target = named
			}
		}
		m.Ports = append(m.Ports, mesh.PortMap{ServicePort: p.service, TargetPort: target})
	}
	return m
}
