// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// frontend is what a client of a service sends to.
type frontend struct {
	vip      netip.Addr
	port     uint16
	protocol Protocol
}

func (f frontend) String() string { return fmt.Sprintf("%s port %d/%s", f.vip, f.port, f.protocol) }

// served is a frontend and who answers there.
type served struct {
	frontend
	service   string
	endpoints []netip.AddrPort // of the family of vip, sorted
}

// frontends are those of all services, by name, so that one configuration always makes one plan. What is wrong with a
// service concerns its users alone: that part is left out and reported.
func (c Config) frontends() (list []served, problems []error) {
	f := finder{taken: map[frontend]string{}}
	sorted := slices.Clone(c.Services)
	slices.SortStableFunc(sorted, func(a, b Service) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range sorted {
		f.service(s)
	}
	return f.found, f.problems
}

type finder struct {
	taken    map[frontend]string
	found    []served
	problems []error
}

func (f *finder) bad(format string, args ...any) {
	f.problems = append(f.problems, fmt.Errorf(format, args...))
}

func (f *finder) service(s Service) {
	if !chainName.MatchString(s.Name) {
		f.bad("service %q: not a name", s.Name)
		return
	}
	var vips []netip.Addr
	for _, v := range s.VIPs {
		if v.IsValid() && !v.Is4In6() {
			vips = append(vips, v)
		} else {
			f.bad("service %q: bad virtual address %s", s.Name, v)
		}
	}
	for _, p := range s.Ports {
		switch {
		case p.protocol() != TCP && p.protocol() != UDP:
			f.bad("service %q port %d: protocol %q is neither TCP nor UDP", s.Name, p.Port, p.Protocol)
		case p.Port == 0:
			f.bad("service %q: port 0", s.Name)
		case len(vips) > 0:
			f.port(s.Name, vips, p)
		}
	}
}

func (f *finder) port(service string, vips []netip.Addr, p ServicePort) {
	var endpoints []netip.AddrPort
	for _, e := range p.Endpoints {
		if e.IsValid() && !e.Addr().Is4In6() && e.Port() != 0 {
			endpoints = append(endpoints, e)
		} else {
			f.bad("service %q port %d: bad endpoint %s", service, p.Port, e)
		}
	}
	slices.SortFunc(endpoints, netip.AddrPort.Compare)
	endpoints = slices.Compact(endpoints)
	for _, v := range vips {
		at := frontend{v, p.Port, p.protocol()}
		if other, taken := f.taken[at]; taken {
			f.bad("service %q: %s belongs to service %q", service, at, other)
			continue
		}
		f.taken[at] = service
		own := slices.DeleteFunc(slices.Clone(endpoints), func(e netip.AddrPort) bool { return e.Addr().Is4() != v.Is4() })
		f.found = append(f.found, served{frontend: at, service: service, endpoints: own})
	}
}
