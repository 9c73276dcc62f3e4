// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// picker chooses one endpoint of a service, weighted by capacity, in one pass and without allocating.
type picker struct {
	req Request
	svc *mesh.Service
	set *endpointSet // nil: no endpoints

	members, unhealthy, portless, addressless, farther int // why there is none
}

// TargetPort is where w serves svc's port: its own mapping first, then the service's target port.
func TargetPort(svc *mesh.Service, w *mesh.Workload, port uint16) (uint16, bool) {
	if m, ok := w.Membership(svc.Key()); ok {
		return targetPort(svc, m, port)
	}
	return 0, false
}

func targetPort(svc *mesh.Service, m mesh.Membership, port uint16) (uint16, bool) {
	if p, ok := mesh.FindPort(m.Ports, port); ok && p.TargetPort != 0 {
		return p.TargetPort, true
	}
	if p, ok := svc.Port(port); ok && p.TargetPort != 0 {
		return p.TargetPort, true
	}
	return 0, false
}

// probes is how many random members are tried before a large set is walked.
const (
	probes   = 8
	smallSet = 16
)

func (p *picker) pick() *mesh.Workload {
	set := p.set
	if set == nil {
		return nil
	}
	if len(set.members) > smallSet && set.max > 0 && p.svc.LoadBalancing.Mode == mesh.BalanceStandard {
		// Rejection sampling has the same distribution as the walk, so falling back to the walk keeps it.
		for range probes {
			w := set.members[rand.IntN(len(set.members))]
			if p.eligible(set.key, w) && rand.Uint32N(set.max) < w.Capacity {
				return w
			}
		}
	}
	return p.walk(set)
}

// walk keeps, of the best rank seen so far, one endpoint with a probability of its share of the weight.
func (p *picker) walk(set *endpointSet) *mesh.Workload {
	p.members, p.unhealthy, p.portless, p.addressless, p.farther = len(set.members), 0, 0, 0, 0
	var chosen *mesh.Workload
	var total uint64
	best := -1
	for _, w := range set.members {
		if !p.eligible(set.key, w) {
			continue
		}
		rank, ok := p.rank(w)
		if !ok {
			p.farther++
			continue
		}
		if rank < best {
			continue
		}
		if rank > best {
			best, total, chosen = rank, 0, nil
		}
		total += uint64(w.Capacity)
		if w.Capacity > 0 && rand.Uint64N(total) < uint64(w.Capacity) {
			chosen = w
		}
	}
	return chosen
}

func (p *picker) eligible(key string, w *mesh.Workload) bool {
	m, _ := w.Membership(key)
	if _, ok := targetPort(p.svc, m, p.req.Dst.Port()); !ok {
		p.portless++
		return false
	}
	if w.Status == mesh.Unhealthy && !p.svc.LoadBalancing.AllowUnhealthy {
		p.unhealthy++
		return false
	}
	if p.remote(w) || w.Hostname != "" {
		return true
	}
	if _, ok := p.address(w); !ok {
		p.addressless++
		return false
	}
	return true
}

// rank is how many leading scopes w shares with the client; in strict mode all or nothing.
func (p *picker) rank(w *mesh.Workload) (int, bool) {
	lb := &p.svc.LoadBalancing
	if lb.Mode == mesh.BalanceStandard {
		return 0, true
	}
	n := 0
	for _, scope := range lb.Scopes {
		if !p.near(scope, w) {
			break
		}
		n++
	}
	return n, lb.Mode == mesh.BalanceFailover || n == len(lb.Scopes)
}

// near compares one scope alone: a service that means "same zone of the same region" lists both.
func (p *picker) near(scope mesh.Scope, w *mesh.Workload) bool {
	c := p.req.Source
	if c == nil {
		return false
	}
	switch scope {
	case mesh.ScopeRegion:
		return c.Locality.Region == w.Locality.Region
	case mesh.ScopeZone:
		return c.Locality.Zone == w.Locality.Zone
	case mesh.ScopeSubzone:
		return c.Locality.Subzone == w.Locality.Subzone
	case mesh.ScopeNode:
		return c.Node == w.Node
	case mesh.ScopeCluster:
		return c.ClusterID == w.ClusterID
	case mesh.ScopeNetwork:
		return c.Network == w.Network
	default:
		return false
	}
}

// remote reports whether w is reachable only through its network's gateway.
func (p *picker) remote(w *mesh.Workload) bool { return w.Network != p.req.Network }

// address is the workload's address to use: the one asked for if it owns it, else one of the families that the service
// allows, of the request's own family if possible.
func (p *picker) address(w *mesh.Workload) (netip.Addr, bool) {
	want := p.req.Dst.Addr()
	var found netip.Addr
	for _, a := range w.Addresses {
		if a == want {
			return a, true
		}
		if !allowed(p.svc.Families, a) {
			continue
		}
		if !found.IsValid() || (found.Is4() != want.Is4() && a.Is4() == want.Is4()) {
			found = a
		}
	}
	return found, found.IsValid()
}

func allowed(f mesh.IPFamilies, a netip.Addr) bool {
	switch f {
	case mesh.FamiliesIPv4:
		return a.Is4()
	case mesh.FamiliesIPv6:
		return a.Is6()
	default:
		return true
	}
}

func (p *picker) upstream(up Upstream, w *mesh.Workload) (Upstream, error) {
	up.Workload, up.Tunnel = w, w.Tunnel
	if p.remote(w) {
		up.Kind = KindGateway
		return up, fmt.Errorf("resolve %s: service %s: endpoint %s is in network %q: %w", p.req.Dst, p.svc.Key(), w.UID, w.Network, ErrGatewayUnsupported)
	}
	addr, ok := p.address(w)
	if !ok {
		up.Hostname = w.Hostname // eligible has seen that it has one
	}
	m, _ := w.Membership(p.set.key)
	port, _ := targetPort(p.svc, m, p.req.Dst.Port())
	up.Addr = netip.AddrPortFrom(addr, port)
	return up, nil
}

// why says what became of the endpoints, for the operator.
func (p *picker) why() string {
	if p.members == 0 {
		return "it has no endpoints"
	}
	return fmt.Sprintf("of %d endpoints %d are unhealthy, %d do not serve the port, %d have no usable address, %d are outside the client's scope",
		p.members, p.unhealthy, p.portless, p.addressless, p.farther)
}
