// SPDX-License-Identifier: Apache-2.0

package control

import (
	"maps"
	"slices"
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambientlab/ambientlab/dataplane/xds"
)

// subscription is what one stream asked for of one type, and what its client holds. Owned by the stream's goroutine.
type subscription struct {
	url      string
	wildcard bool
	names    map[string]bool // subscribed by name; a name may be an alias

	// What the client holds: all of base if that is not nil, else held.
	base       *table
	generation uint64 // of the view that base is from
	held       map[string]string

	nonce int
}

// begin makes a subscription of the first request of a type, and returns the names that it asks for.
func begin(r *discovery.DeltaDiscoveryRequest) (s *subscription, asked []string) {
	s = &subscription{url: r.GetTypeUrl(), names: map[string]bool{}, held: maps.Clone(r.GetInitialResourceVersions())}
	if s.held == nil {
		s.held = map[string]string{}
	}
	s.wildcard = len(r.GetResourceNamesSubscribe()) == 0
	asked = s.change(r)
	if !s.wildcard {
		// A client that comes back names what it holds; that is what it was subscribed to.
		for name := range s.held {
			s.names[name] = true
		}
	}
	return s, asked
}

// change applies a request's changes of names and returns those that are new.
func (s *subscription) change(r *discovery.DeltaDiscoveryRequest) (added []string) {
	for _, n := range r.GetResourceNamesSubscribe() {
		if n == "*" {
			s.wildcard = true
			continue
		}
		s.names[n] = true
		added = append(added, n)
	}
	for _, n := range r.GetResourceNamesUnsubscribe() {
		if n == "*" {
			s.wildcard = false
			s.materialise()
			continue
		}
		delete(s.names, n)
	}
	return added
}

// materialise turns "all of base" into single entries, for a client that no longer wants all.
func (s *subscription) materialise() {
	if s.base == nil {
		return
	}
	for name, r := range s.base.byName {
		s.held[name] = r.version
	}
	s.base = nil
}

// update says what the client needs to hold what v has, and notes that it does. Names in asked are answered even if there
// is nothing of that name, and with again even if the client holds what there is.
func (s *subscription) update(v *view, asked []string, again bool) delta {
	t := v.table(s.url)
	var d delta
	switch {
	case s.wildcard && s.base != nil && s.generation == v.generation:
	case s.wildcard && s.base != nil && s.generation+1 == v.generation && s.url != xds.TypeWorkload:
		d = v.deltas[s.url]
	case s.wildcard && s.base != nil:
		d = diff(s.base, t)
	case s.wildcard:
		d = s.diffHeld(t, t.names)
	default:
		d = s.diffHeld(t, s.interest(v))
	}
	d = s.answer(v, d, asked, again)
	if s.wildcard {
		s.base, s.generation, s.held = t, v.generation, map[string]string{}
		return d
	}
	for _, n := range d.changed {
		s.held[n] = t.byName[n].version
	}
	for _, n := range d.removed {
		delete(s.held, n)
	}
	return d
}

func (s *subscription) interest(v *view) []string {
	var want []string
	for n := range s.names {
		want = append(want, v.lookup(s.url, n)...)
	}
	slices.Sort(want)
	return slices.Compact(want)
}

func (s *subscription) diffHeld(t *table, want []string) delta {
	var d delta
	wanted := make(map[string]bool, len(want))
	for _, n := range want {
		wanted[n] = true
		if have, ok := s.held[n]; !ok || have != t.byName[n].version {
			d.changed = append(d.changed, n)
		}
	}
	for n := range s.held {
		if !wanted[n] {
			d.removed = append(d.removed, n)
		}
	}
	slices.Sort(d.removed)
	return d
}

func (s *subscription) answer(v *view, d delta, asked []string, again bool) delta {
	if len(asked) == 0 {
		return d
	}
	d = delta{changed: slices.Clone(d.changed), removed: slices.Clone(d.removed)}
	for _, n := range asked {
		found := v.lookup(s.url, n)
		if again {
			d.changed = append(d.changed, found...)
		}
		if len(found) == 0 {
			d.removed = append(d.removed, n)
		}
	}
	slices.Sort(d.changed)
	slices.Sort(d.removed)
	d.changed, d.removed = slices.Compact(d.changed), slices.Compact(d.removed)
	return d
}

// respond puts a delta on the wire.
func (s *subscription) respond(v *view, d delta) *discovery.DeltaDiscoveryResponse {
	s.nonce++
	t := v.table(s.url)
	out := &discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: strconv.FormatUint(v.generation, 10), TypeUrl: s.url, Nonce: strconv.Itoa(s.nonce),
		Resources: make([]*discovery.Resource, 0, len(d.changed)), RemovedResources: d.removed,
	}
	for _, n := range d.changed {
		r := t.byName[n]
		out.Resources = append(out.Resources, &discovery.Resource{
			Name: r.name, Version: r.version, Resource: &anypb.Any{TypeUrl: s.url, Value: r.value},
		})
	}
	return out
}
