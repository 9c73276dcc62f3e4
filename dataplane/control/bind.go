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

// selecting is what picks workloads of one namespace by their labels.
type selecting interface {
	selects() (namespace string, selector map[string]string)
}

func (b *binding) selects() (namespace string, selector map[string]string) {
	return b.service.Namespace, b.selector
}

// selectors finds what selects a set of labels. Each entry is filed under the one pair of its selector that the fewest
// entries share: a pair such as team=shop that all have would make every look-up a walk over all.
type selectors[T selecting] struct{ by map[label][]T }

func newSelectors[T selecting](all []T) *selectors[T] {
	count := map[label]int{}
	for _, b := range all {
		namespace, selector := b.selects()
		for k, v := range selector {
			count[label{namespace, k, v}]++
		}
	}
	s := &selectors[T]{by: map[label][]T{}}
	for _, b := range all {
		var best label
		namespace, selector := b.selects()
		for _, k := range slices.Sorted(maps.Keys(selector)) {
			l := label{namespace, k, selector[k]}
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

// of lists what selects labels in a namespace, in no order. A selector without pairs selects nothing.
func (s *selectors[T]) of(namespace string, labels map[string]string) []T {
	if len(s.by) == 0 {
		return nil
	}
	var out []T
	for k, v := range labels {
		for _, b := range s.by[label{namespace, k, v}] {
			if _, selector := b.selects(); subset(selector, labels) {
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
