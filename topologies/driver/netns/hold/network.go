// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

// underlayRanges are where nodes and external hosts have addresses: shared address space (RFC 6598) and a unique local
// range, which topologies leave alone.
var underlayRanges = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/24"), netip.MustParsePrefix("fd00:100:64::/64")}

// member is one machine on the underlay.
type member struct {
	host nodenet.Host
	ns   *netns.NS
	node bool

	mu   sync.Mutex // held while its network is written
	cuts map[string]bool
}

// underlay is the network between nodes and external hosts.
type underlay struct {
	net nodenet.Underlay

	mu      sync.Mutex
	members []*member // guarded by mu
}

func (s *site) newUnderlay(ctx context.Context) error {
	subnets := slices.DeleteFunc(slices.Clone(underlayRanges), func(p netip.Prefix) bool { return !s.hasFamily(p.Addr()) })
	s.under.net = nodenet.Underlay{Bridge: "underlay", Subnets: subnets}
	return s.under.net.Create(ctx, nil)
}

func (s *site) hasFamily(a netip.Addr) bool {
	if a.Is4() {
		return s.cluster.IPFamily.Has4()
	}
	return s.cluster.IPFamily.Has6()
}

// join attaches a namespace to the underlay, as the n-th of all (from 1). extra are addresses beside that on the underlay.
func (s *site) join(ctx context.Context, n int, name string, ns *netns.NS, pods, extra []netip.Prefix) error {
	addrs, err := s.under.net.Address(n)
	if err != nil {
		return err
	}
	for _, p := range extra {
		if s.hasFamily(p.Addr()) {
			addrs = append(addrs, p.Addr())
		}
	}
	err = s.under.net.Attach(ctx, nil, ns, nodenet.Member{Port: fmt.Sprintf("port%d", n), Addresses: addrs})
	if err != nil {
		return err
	}
	m := &member{
		host: nodenet.Host{Name: name, Addresses: addrs, PodSubnets: pods}, ns: ns, node: len(pods) > 0, cuts: map[string]bool{},
	}
	s.under.mu.Lock()
	defer s.under.mu.Unlock()
	s.under.members = append(s.under.members, m)
	return nil
}

func (u *underlay) list() []*member {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.members)
}

// writeNetwork brings every member's routes and rules up to date; what is so already is not written. It returns what
// services have no part in it, sorted.
func (s *site) writeNetwork(ctx context.Context, services []nodenet.Service) (problems []string, err error) {
	members := s.under.list()
	var mu sync.Mutex
	err = parallel(members, func(m *member) error {
		found, err := s.writeMember(ctx, m, members, services)
		mu.Lock()
		defer mu.Unlock()
		for _, p := range found {
			problems = append(problems, p.Error())
		}
		return err
	})
	slices.Sort(problems)
	return slices.Compact(problems), err // every node has the same
}

func (s *site) writeMember(ctx context.Context, m *member, all []*member, services []nodenet.Service) (problems []error, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := nodenet.Config{Self: m.host}
	for _, o := range all {
		if o == m {
			continue
		}
		c.Peers = append(c.Peers, o.host)
		if m.cuts[o.host.Name] {
			c.Cut = append(c.Cut, o.host.Name)
		}
	}
	if m.node {
		c.ServiceSubnets, c.Services = s.cluster.ServiceSubnets, services
	}
	plan, err := nodenet.NewPlan(c)
	if err != nil {
		return nil, err
	}
	_, err = nodenet.Apply(ctx, m.ns, plan)
	return plan.Problems, err
}

// link cuts or restores what is between two members.
func (s *site) link(ctx context.Context, r *order.Link) error {
	find := func(name string) *member {
		for _, m := range s.under.list() {
			if m.host.Name == name {
				return m
			}
		}
		return nil
	}
	a, b := find(r.A), find(r.B)
	if a == nil || b == nil || a == b {
		return fmt.Errorf("no link between %q and %q: want two of the nodes and external hosts", r.A, r.B)
	}
	for _, pair := range [][2]*member{{a, b}, {b, a}} {
		pair[0].mu.Lock()
		pair[0].cuts[pair[1].host.Name] = r.Cut
		pair[0].mu.Unlock()
	}
	return s.control.flush(ctx)
}

// parallel runs fn for every element and returns the first error.
func parallel[T any](list []T, fn func(T) error) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, e := range list {
		wg.Go(func() { errs[i] = fn(e) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
