// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

// underlayRanges are where nodes and external hosts have addresses: shared address space (RFC 6598) and a unique local
// range, which topologies leave alone.
var underlayRanges = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/24"), netip.MustParsePrefix("fd00:100:64::/64")}

// member is one machine on the underlay.
type member struct {
	host    nodenet.Host
	ns      *netns.NS
	node    bool
	port    string // the bridge's end of its link
	network string // of a node
	mtu     int

	mu      sync.Mutex // held while its network is written
	cuts    map[string]bool
	plan    nodenet.Plan // what was written last
	written bool         // and nothing went wrong
}

// underlay is the network between nodes and external hosts.
type underlay struct {
	net nodenet.Underlay

	mu      sync.Mutex
	members []*member // guarded by mu

	impaired impairments
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

// machine is what joins the underlay, as the nth of all (from 1).
type machine struct {
	nth     int
	name    string
	ns      *netns.NS
	network string         // of a node
	pods    []netip.Prefix // a node's pod subnets
	extra   []netip.Addr   // addresses beside that on the underlay
	mtu     int
	plain   bool
}

// join attaches a machine to the underlay.
func (s *site) join(ctx context.Context, j machine) error {
	addrs, err := s.under.net.Address(j.nth)
	if err != nil {
		return err
	}
	for _, a := range j.extra {
		if s.hasFamily(a) {
			addrs = append(addrs, a)
		}
	}
	port := fmt.Sprintf("port%d", j.nth)
	err = s.under.net.Attach(ctx, nil, j.ns, nodenet.Member{Port: port, Addresses: addrs, MTU: j.mtu, Plain: j.plain})
	if err != nil {
		return err
	}
	m := &member{
		host: nodenet.Host{Name: j.name, Addresses: addrs, PodSubnets: j.pods}, ns: j.ns, node: len(j.pods) > 0,
		port: port, network: j.network, mtu: j.mtu, cuts: map[string]bool{},
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
		c.Peers = append(c.Peers, s.peer(m, o))
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
	if m.written && reflect.DeepEqual(m.plan, plan) {
		return plan.Problems, nil // nobody else writes there, and to compare with the kernel costs more than the rest of a pass
	}
	_, err = nodenet.Apply(ctx, m.ns, plan)
	m.plan, m.written = plan, err == nil
	return plan.Problems, err
}

// peer is what m has to know of o. To pods of another network nothing leads, but for the mesh's own.
func (s *site) peer(m, o *member) nodenet.Host {
	h := o.host
	if mtu := s.spec.PathMTU(m.host.Name, o.host.Name); mtu < m.mtu {
		h.PathMTU = mtu
	}
	if m.node && o.node && m.network != o.network {
		h.PodSubnets = s.exposed(o.host.Name)
	}
	return h
}

// exposed are the addresses of the mesh's own pods on a node.
func (s *site) exposed(node string) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range s.podList() {
		if p.role == roleApp || p.node.name != node {
			continue
		}
		p.mu.Lock()
		for _, ip := range p.ips {
			list = append(list, netip.PrefixFrom(ip, ip.BitLen()))
		}
		p.mu.Unlock()
	}
	return list
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
