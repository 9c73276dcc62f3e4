// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// edit builds the next snapshot from the current one. Whatever it touches it copies once, marked with its epoch.
type edit struct {
	snap   *Snapshot
	epoch  uint64
	intern *interner

	policies policyEdit
}

func newEdit(old *Snapshot, epoch uint64, in *interner) *edit {
	e := &edit{snap: new(Snapshot), epoch: epoch, intern: in}
	*e.snap = *old
	e.snap.changed = make(chan struct{})
	return e
}

func (e *edit) putWorkload(w *mesh.Workload) {
	e.intern.workload(w)
	slices.SortFunc(w.Services, func(a, b mesh.Membership) int { return strings.Compare(a.Key, b.Key) })
	for i := range w.Addresses {
		w.Addresses[i] = w.Addresses[i].Unmap()
	}
	sameUID := func(v *mesh.Workload) bool { return v.UID == w.UID }
	if old, ok := e.snap.workloads.put(e.epoch, hashString(w.UID), w, sameUID); ok {
		e.unindexWorkload(old)
	}
	e.snap.names.insert(e.epoch, hashPair(w.Namespace, w.Name), w)
	if w.NetworkMode != mesh.NetworkHost {
		for _, a := range w.Addresses {
			e.insertAddr(a, w)
		}
	}
	e.shareLists(w)
	for i := range w.Services {
		e.insertEndpoint(w.Services[i].Key, w)
	}
}

func (e *edit) removeWorkload(uid string) {
	old, ok := e.snap.workloads.remove(e.epoch, hashString(uid), func(v *mesh.Workload) bool { return v.UID == uid })
	if ok {
		e.unindexWorkload(old)
	}
}

func (e *edit) unindexWorkload(w *mesh.Workload) {
	e.snap.names.remove(e.epoch, hashPair(w.Namespace, w.Name), func(v *mesh.Workload) bool { return v == w })
	if w.NetworkMode != mesh.NetworkHost {
		for _, a := range w.Addresses {
			e.snap.addrs.remove(e.epoch, hashAddr(w.Network, a), func(v *mesh.Workload) bool { return v == w })
		}
	}
	for i := range w.Services {
		e.removeEndpoint(w.Services[i].Key, w)
	}
}

// insertAddr keeps the best owner of an address first: insert goes before all others, so a lesser one is put behind
// by taking the pods out and inserting them again.
func (e *edit) insertAddr(a netip.Addr, w *mesh.Workload) {
	h := hashAddr(w.Network, a)
	var pods []*mesh.Workload
	if !isPod(w) {
		better := func(v *mesh.Workload) bool { return owns(v, w.Network, a) && isPod(v) }
		for v, ok := e.snap.addrs.remove(e.epoch, h, better); ok; v, ok = e.snap.addrs.remove(e.epoch, h, better) {
			pods = append(pods, v)
		}
	}
	e.snap.addrs.insert(e.epoch, h, w)
	for _, v := range slices.Backward(pods) {
		e.snap.addrs.insert(e.epoch, h, v)
	}
}

// isPod looks at the uid, cluster/group/kind/namespace/name: a pod has the empty group.
func isPod(w *mesh.Workload) bool { return strings.Contains(w.UID, "//Pod/") }

func (e *edit) insertEndpoint(key string, w *mesh.Workload) {
	set := e.endpointSet(key)
	i, found := slices.BinarySearchFunc(set.members, w.UID, compareUID)
	if found {
		set.members[i] = w
	} else {
		set.members = slices.Insert(set.members, i, w)
	}
	set.max = max(set.max, w.Capacity)
}

// shareLists lets endpoints of one service share the lists that are nearly always the same for all of them. Only w's own
// are written to: those of others may be read meanwhile.
func (e *edit) shareLists(w *mesh.Workload) {
	for i := range w.Services {
		m := &w.Services[i]
		set := e.snap.endpointSet(m.Key)
		if set == nil || len(set.members) == 0 {
			continue
		}
		other := set.members[0]
		if slices.Equal(other.AuthorizationPolicies, w.AuthorizationPolicies) {
			w.AuthorizationPolicies = other.AuthorizationPolicies
		}
		if slices.EqualFunc(other.Services, w.Services, equalMemberships) {
			w.Services = other.Services
			return
		}
		if theirs, ok := other.Membership(m.Key); ok && slices.Equal(theirs.Ports, m.Ports) {
			m.Ports = theirs.Ports
		}
	}
}

func equalMemberships(a, b mesh.Membership) bool {
	return a.Key == b.Key && slices.Equal(a.Ports, b.Ports)
}

func (e *edit) removeEndpoint(key string, w *mesh.Workload) {
	if e.snap.endpointSet(key) == nil {
		return
	}
	set := e.endpointSet(key)
	i, found := slices.BinarySearchFunc(set.members, w.UID, compareUID)
	if !found || set.members[i] != w {
		return
	}
	set.members = slices.Delete(set.members, i, i+1)
	if len(set.members) == 0 {
		e.snap.endpoints.remove(e.epoch, hashKey(key), func(v *endpointSet) bool { return v.key == key })
		return
	}
	if w.Capacity == set.max {
		set.max = 0
		for _, v := range set.members {
			set.max = max(set.max, v.Capacity)
		}
	}
}

func compareUID(w *mesh.Workload, uid string) int { return strings.Compare(w.UID, uid) }

// endpointSet is a copy of the set for key that this edit may write to.
func (e *edit) endpointSet(key string) *endpointSet {
	set := e.snap.endpointSet(key)
	if set != nil && set.epoch == e.epoch {
		return set
	}
	c := &endpointSet{key: key, epoch: e.epoch}
	if set != nil {
		c.key, c.max = set.key, set.max
		c.members = append(make([]*mesh.Workload, 0, len(set.members)+1), set.members...)
	}
	e.snap.endpoints.put(e.epoch, hashKey(key), c, func(v *endpointSet) bool { return v.key == key })
	return c
}

func (e *edit) putService(s *mesh.Service) {
	e.intern.service(s)
	slices.SortFunc(s.Ports, func(a, b mesh.PortMap) int { return int(a.ServicePort) - int(b.ServicePort) })
	same := func(v *mesh.Service) bool { return v.Namespace == s.Namespace && v.Hostname == s.Hostname }
	if old, ok := e.snap.services.put(e.epoch, hashPair(s.Namespace, s.Hostname), s, same); ok {
		e.unindexService(old)
	}
	e.addHost(s)
	for i, v := range s.VIPs {
		s.VIPs[i].Addr = v.Addr.Unmap()
		e.addVIP(&e.snap.vips, v.Network, netip.PrefixFrom(v.Addr.Unmap(), v.Addr.Unmap().BitLen()), -1, s)
	}
	for i, v := range s.CIDRs {
		p := v.Prefix.Masked()
		s.CIDRs[i].Prefix = p
		if e.addVIP(&e.snap.cidrs, v.Network, p, p.Bits(), s) {
			e.countLength(p, 1)
		}
	}
}

func (e *edit) removeService(key string) {
	ns, host, _ := strings.Cut(key, "/")
	old, ok := e.snap.services.remove(e.epoch, hashPair(ns, host), func(v *mesh.Service) bool {
		return v.Namespace == ns && v.Hostname == host
	})
	if ok {
		e.unindexService(old)
	}
}

func (e *edit) unindexService(s *mesh.Service) {
	e.dropHost(s)
	for _, v := range s.VIPs {
		e.dropVIP(&e.snap.vips, v.Network, netip.PrefixFrom(v.Addr, v.Addr.BitLen()), -1, s)
	}
	for _, v := range s.CIDRs {
		if e.dropVIP(&e.snap.cidrs, v.Network, v.Prefix, v.Prefix.Bits(), s) {
			e.countLength(v.Prefix, -1)
		}
	}
}

// addVIP reports whether the VIP or range is new to the table. bits is -1 for a VIP.
func (e *edit) addVIP(t *table[*vipSet], network string, p netip.Prefix, bits int, s *mesh.Service) bool {
	old := e.snap.vipSet(t, network, p.Addr(), bits)
	next := &vipSet{network: network, prefix: p}
	if old != nil {
		if slices.Contains(old.services, s) {
			return false
		}
		next.network = old.network
		next.services = append(next.services, old.services...)
	}
	i, _ := slices.BinarySearchFunc(next.services, s, compareServices)
	next.services = slices.Insert(next.services, i, s)
	e.snap.putVIP(t, e.epoch, next, bits)
	return old == nil
}

// dropVIP reports whether the VIP or range is gone from the table.
func (e *edit) dropVIP(t *table[*vipSet], network string, p netip.Prefix, bits int, s *mesh.Service) bool {
	old := e.snap.vipSet(t, network, p.Addr(), bits)
	if old == nil || !slices.Contains(old.services, s) {
		return false
	}
	if len(old.services) == 1 {
		t.remove(e.epoch, hashPrefix(network, p.Addr(), bits), func(v *vipSet) bool { return v == old })
		return true
	}
	next := &vipSet{network: old.network, prefix: p}
	for _, v := range old.services {
		if v != s {
			next.services = append(next.services, v)
		}
	}
	e.snap.putVIP(t, e.epoch, next, bits)
	return false
}

func (s *Snapshot) putVIP(t *table[*vipSet], epoch uint64, v *vipSet, bits int) {
	t.put(epoch, hashPrefix(v.network, v.prefix.Addr(), bits), v, func(o *vipSet) bool {
		return o.prefix == v.prefix && o.network == v.network
	})
}

func (e *edit) countLength(p netip.Prefix, by int) {
	next := &prefixLengths{}
	if e.snap.lengths != nil {
		*next = *e.snap.lengths
	}
	next.of(p.Addr())[p.Bits()] += uint32(by)
	e.snap.lengths = next
}
