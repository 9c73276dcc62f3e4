// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Kind is what an upstream is.
type Kind uint8

// Kinds of upstream.
const (
	KindPassthrough Kind = iota // outside the mesh, or a service that asks for it: plain TCP to the original address
	KindWorkload                // a workload, reached as Tunnel says
	KindWaypoint                // only beside ErrWaypointUnsupported
	KindGateway                 // only beside ErrGatewayUnsupported
)

func (k Kind) String() string {
	return [...]string{"passthrough", "workload", "waypoint", "gateway"}[k]
}

// Errors of Resolve, to branch on; each comes wrapped in a sentence that says what was asked for and why it fails.
var (
	ErrNoHealthyUpstream   = errors.New("no healthy upstream")
	ErrNoPort              = errors.New("the service has no such port")
	ErrWaypointUnsupported = errors.New("waypoints are not supported yet")
	ErrGatewayUnsupported  = errors.New("network gateways are not supported yet")
)

// Request asks where a connection should go.
type Request struct {
	Source  *mesh.Workload // nil: unknown
	Dst     netip.AddrPort // the original destination
	Network string         // the proxy's own network
}

// Upstream is the answer. Beside an error it holds what had been found by then, for the access log.
type Upstream struct {
	Kind        Kind
	Workload    *mesh.Workload // nil with KindPassthrough
	Service     *mesh.Service  // nil unless addressed by one
	Addr        netip.AddrPort // the workload's address and target port (HBONE's authority, not 15008)
	Hostname    string         // if set, the workload has no address: Addr is a port alone, and this must be resolved
	Tunnel      mesh.Tunnel
	ServicePort uint16 // the port that the client asked for, if addressed by service
}

// SANs are the accepted identities of the server, as SPIFFE URIs; nil without a tunnel.
func (u *Upstream) SANs() []string {
	if u.Kind != KindWorkload || u.Tunnel != mesh.TunnelHBONE {
		return nil
	}
	var also []string
	if u.Service != nil {
		also = u.Service.SubjectAltNames
	}
	return append(append(make([]string, 0, len(also)+1), also...), identityURI(u.Workload))
}

// Resolve picks an upstream. It never answers "passthrough" for something that the mesh knows but it cannot serve: that is an error.
func (s *Snapshot) Resolve(r Request) (Upstream, error) {
	r.Dst = netip.AddrPortFrom(r.Dst.Addr().Unmap().WithZone(""), r.Dst.Port())
	if w := s.WorkloadByAddr(r.Network, r.Dst.Addr()); w != nil {
		return s.resolveWorkload(r, w)
	}
	ns := ""
	if r.Source != nil {
		ns = r.Source.Namespace
	}
	if svc := s.ServiceByVIP(r.Network, r.Dst.Addr(), ns); svc != nil {
		return s.resolveService(r, svc)
	}
	return Upstream{Kind: KindPassthrough, Addr: r.Dst}, nil
}

// resolveWorkload serves a client that addressed the workload itself; its health is the client's business.
func (s *Snapshot) resolveWorkload(r Request, w *mesh.Workload) (Upstream, error) {
	up := Upstream{Kind: KindWorkload, Workload: w, Addr: r.Dst, Tunnel: w.Tunnel}
	if w.Waypoint != nil && !s.isGateway(r, w.Waypoint) {
		up.Kind = KindWaypoint
		return up, fmt.Errorf("resolve %s: workload %s is behind the waypoint %s: %w", r.Dst, w.UID, gatewayName(w.Waypoint), ErrWaypointUnsupported)
	}
	return up, nil
}

func (s *Snapshot) resolveService(r Request, svc *mesh.Service) (Upstream, error) {
	up := Upstream{Kind: KindWorkload, Service: svc, Addr: r.Dst, ServicePort: r.Dst.Port()}
	if gw := s.waypointOf(r, svc); gw != nil {
		up.Kind = KindWaypoint
		return up, fmt.Errorf("resolve %s: service %s is behind the waypoint %s: %w", r.Dst, svc.Key(), gatewayName(gw), ErrWaypointUnsupported)
	}
	if svc.LoadBalancing.Mode == mesh.BalancePassthrough {
		up.Kind = KindPassthrough
		return up, nil
	}
	if _, ok := svc.Port(r.Dst.Port()); !ok {
		return up, fmt.Errorf("resolve %s: service %s: %w", r.Dst, svc.Key(), ErrNoPort)
	}
	p := picker{req: r, svc: svc, set: s.endpointsOf(svc)}
	w := p.pick()
	if w == nil {
		return up, fmt.Errorf("resolve %s: service %s: %s: %w", r.Dst, svc.Key(), p.why(), ErrNoHealthyUpstream)
	}
	return p.upstream(up, w)
}

// waypointOf is the waypoint that r must go through; nil if there is none or r comes from it.
func (s *Snapshot) waypointOf(r Request, svc *mesh.Service) *mesh.GatewayAddress {
	var gw *mesh.GatewayAddress
	for i := range svc.Waypoints {
		if s.isGateway(r, &svc.Waypoints[i].Destination) {
			return nil
		}
		if svc.Waypoints[i].Weight > 0 {
			gw = &svc.Waypoints[i].Destination
		}
	}
	if svc.Waypoint == nil {
		return gw
	}
	if s.isGateway(r, svc.Waypoint) {
		return nil
	}
	if gw == nil {
		gw = svc.Waypoint
	}
	return gw
}

// isGateway reports whether r's source is the gateway at gw, so that its traffic is not sent back to it.
func (s *Snapshot) isGateway(r Request, gw *mesh.GatewayAddress) bool {
	if r.Source == nil {
		return false
	}
	if gw.Hostname.Host != "" {
		_, member := r.Source.Membership(gw.Hostname.Key())
		return member
	}
	if w := s.WorkloadByAddr(gw.Address.Network, gw.Address.Addr); w != nil {
		return w.UID == r.Source.UID
	}
	if svc := s.ServiceByVIP(gw.Address.Network, gw.Address.Addr, r.Source.Namespace); svc != nil {
		_, member := r.Source.Membership(svc.Key())
		return member
	}
	return false
}

func gatewayName(gw *mesh.GatewayAddress) string {
	if gw.Hostname.Host != "" {
		return gw.Hostname.Key()
	}
	return gw.Address.String()
}

// identityURI is w's identity in one allocation.
func identityURI(w *mesh.Workload) string {
	id := w.Identity()
	return "spiffe://" + id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}
