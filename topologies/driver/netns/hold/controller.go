// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/cluster"
)

// controller follows objects and pods with what depends on them: endpoint slices, services and policies on every node, DNS. Changes
// that come close together are followed at once.
type controller struct {
	wake chan struct{}

	mu       sync.Mutex
	changes  uint64        // guarded by mu; counts what was told
	followed uint64        // guarded by mu; the changes that are in effect
	err      error         // guarded by mu; of the last pass
	passed   chan struct{} // guarded by mu; closed after the next pass

	slices   map[source.Key]*discoveryv1.EndpointSlice // owned by the one that passes
	problems []string                                  // owned by the one that passes; of services and policies, in the last pass
	policed  bool                                      // owned by the one that passes; nodes may have a NetworkPolicy table
}

// settle is how long a pass waits for further changes.
const settle = 5 * time.Millisecond

func newController() *controller {
	return &controller{
		wake: make(chan struct{}, 1), passed: make(chan struct{}), slices: map[source.Key]*discoveryv1.EndpointSlice{},
	}
}

// changed tells that something is different, and does not wait.
func (c *controller) changed() {
	c.mu.Lock()
	c.changes++
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default: // a pass is due anyhow
	}
}

// flush waits until everything that was told so far, and this call, is in effect.
func (c *controller) flush(ctx context.Context) error {
	c.changed()
	c.mu.Lock()
	want := c.changes
	c.mu.Unlock()
	for {
		c.mu.Lock()
		done, err, passed := c.followed >= want, c.err, c.passed
		c.mu.Unlock()
		if done {
			return err
		}
		select {
		case <-passed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// runController passes until ctx ends.
func (s *site) runController(ctx context.Context) {
	c := s.control
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		c.mu.Lock()
		upTo := c.changes
		c.mu.Unlock()
		err := s.pass(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Error("cluster not brought up to date", "err", err)
		}
		c.mu.Lock()
		c.followed, c.err = upTo, err
		close(c.passed)
		c.passed = make(chan struct{})
		c.mu.Unlock()
	}
}

// pass brings everything in line with objects and pods as they are now.
func (s *site) pass(ctx context.Context) error {
	objs, err := s.writeSlices(s.withStatus())
	if err != nil {
		return fmt.Errorf("write endpoint slices: %w", err)
	}
	s.dns.Update(cluster.NewZone(objs, s.cluster.Domain, s.externalNames()))
	// Policies first: no virtual address leads to a pod whose rules do not stand.
	policies, policyErr := s.writePolicies(ctx, objs)
	services, err := s.writeNetwork(ctx, cluster.Services(objs))
	problems := slices.Concat(policies, services)
	for _, p := range problems {
		if !slices.Contains(s.control.problems, p) {
			s.log.Warn("part of a service or a policy is left out", "why", p)
		}
	}
	s.control.problems = problems
	if err := errors.Join(policyErr, err); err != nil {
		return fmt.Errorf("write node networks: %w", err)
	}
	return nil
}

// withStatus is all objects, pods with what kubelet says of them.
func (s *site) withStatus() *source.Objects {
	changes := map[source.Key]source.Object{}
	for _, p := range s.podList() {
		o := p.object().DeepCopy()
		o.Status = p.statusOf().Status
		changes[source.Key{Kind: "Pod", Namespace: p.ref.Namespace, Name: p.ref.Name}] = o
	}
	return s.snapshot().With(changes)
}

// writeSlices makes the slices of services with selectors, writes those that are not so already, and adds them to o.
func (s *site) writeSlices(o *source.Objects) (*source.Objects, error) {
	have := s.control.slices
	want := map[source.Key]*discoveryv1.EndpointSlice{}
	changes := map[source.Key]source.Object{}
	for _, slice := range cluster.Slices(o) {
		key := keyOf(slice)
		want[key], changes[key] = slice, slice
		if reflect.DeepEqual(have[key], slice) {
			continue
		}
		if err := s.writeObject(s.dir.Objects(), slice); err != nil {
			return nil, err
		}
	}
	for key := range have {
		if want[key] == nil {
			if err := remove(s.objectFile(key)); err != nil {
				return nil, err
			}
		}
	}
	s.control.slices = want
	return o.With(changes), nil
}

// externalNames are the names under which DNS knows the external hosts: <name>.external.
func (s *site) externalNames() map[string][]netip.Addr {
	names := map[string][]netip.Addr{}
	for _, e := range s.spec.External {
		names[e.Name+".external"] = e.Addresses
	}
	return names
}

// assignVIPs gives new services their addresses.
func (s *site) assignVIPs(objs []source.Object) error {
	snapshot := s.snapshot()
	for _, o := range objs {
		svc, ok := o.(*corev1.Service)
		if !ok {
			continue
		}
		if err := cluster.AssignClusterIPs(snapshot, s.cluster.ServiceSubnets, svc); err != nil {
			return err
		}
		snapshot = snapshot.With(map[source.Key]source.Object{keyOf(svc): svc})
	}
	return nil
}
