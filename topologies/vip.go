// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Offsets of well-known services within a service subnet, as Kubernetes places them.
const (
	offsetKubernetes = 1
	offsetDNS        = 10
	offsetFirstFree  = 16 // what is below is never allocated
)

// Allocator hands out service addresses: the same offset in every subnet, the lowest that is free, so that the result
// depends on nothing but the order of calls. It is not safe for concurrent use.
type Allocator struct {
	subnets []netip.Prefix
	used    map[netip.Addr]bool
	next    uint64
}

// NewAllocator allocates from subnets, one per family.
func NewAllocator(subnets []netip.Prefix) *Allocator {
	return &Allocator{subnets: subnets, used: map[netip.Addr]bool{}, next: offsetFirstFree}
}

// Reserve takes an address that was chosen elsewhere. It reports false if it was taken already.
func (a *Allocator) Reserve(ip netip.Addr) bool {
	if a.used[ip] {
		return false
	}
	a.used[ip] = true
	return true
}

// Release gives addresses back. They are not handed out again before all others were.
func (a *Allocator) Release(ips ...netip.Addr) {
	for _, ip := range ips {
		delete(a.used, ip)
	}
}

// Allocate takes one address from every subnet.
func (a *Allocator) Allocate() ([]netip.Addr, error) {
	start, wrapped := a.next, false
	for {
		ips, ok := a.at(a.next)
		if !ok {
			if wrapped || start == offsetFirstFree {
				return nil, fmt.Errorf("allocate service address: %v are full", a.subnets)
			}
			a.next, wrapped = offsetFirstFree, true
			continue
		}
		a.next++
		if a.take(ips) {
			return ips, nil
		}
	}
}

func (a *Allocator) take(ips []netip.Addr) bool {
	for _, ip := range ips {
		if a.used[ip] {
			return false
		}
	}
	for _, ip := range ips {
		a.used[ip] = true
	}
	return true
}

// at is the n-th address of every subnet; ok is false beyond the end of one of them.
func (a *Allocator) at(n uint64) (ips []netip.Addr, ok bool) {
	for _, s := range a.subnets {
		size := s.Addr().BitLen() - s.Bits()
		if size < 63 && n >= 1<<size-1 { // the last address is a broadcast address
			return nil, false
		}
		ips = append(ips, offset(s, n))
	}
	return ips, true
}

// offset is the n-th address of s.
func offset(s netip.Prefix, n uint64) netip.Addr {
	b := s.Addr().As16()
	low := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], low+n)
	ip := netip.AddrFrom16(b)
	if s.Addr().Is4() {
		return ip.Unmap()
	}
	return ip
}
