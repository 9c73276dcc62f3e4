// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/xds/workloadapi"
)

func decodeService(in *workloadapi.Service) (*mesh.Service, error) {
	p := &problems{}
	out := &mesh.Service{
		Name: in.GetName(), Namespace: intern(in.GetNamespace()), Hostname: in.GetHostname(),
		Ports:    decodePorts(p, "ports", in.GetPorts()),
		Waypoint: decodeGateway(p, "waypoint", in.GetWaypoint()),
		Families: decodeEnum[mesh.IPFamilies](p, "ip_families", in.GetIpFamilies()), Canonical: in.GetCanonical(),
		IngressWaypoint:  in.GetIngressUseWaypoint(),
		NamespacePrivate: decodeEnum[uint8](p, "visibility", in.GetVisibility()) != 0,
		LoadBalancing:    decodeBalancing(p, in.GetLoadBalancing()),
	}
	if out.Namespace == "" {
		p.add("namespace", "missing")
	}
	if out.Hostname == "" {
		p.add("hostname", "missing")
	}
	for i, a := range in.GetAddresses() {
		decodeVIP(p, index("addresses", i), a, out)
	}
	if sans := in.GetSubjectAltNames(); len(sans) > 0 {
		out.SubjectAltNames = append(out.SubjectAltNames, sans...)
	}
	for i, w := range in.GetWeightedWaypoints() {
		field := index("weighted_waypoints", i) + ".destination"
		d := decodeGateway(p, field, w.GetDestination())
		if d == nil {
			p.add(field, "missing")
			continue
		}
		out.Waypoints = append(out.Waypoints, mesh.WeightedWaypoint{Destination: *d, Weight: w.GetWeight()})
	}
	if err := p.err(fmt.Sprintf("decode service %q", out.Key())); err != nil {
		return nil, err
	}
	return out, nil
}

func decodeVIP(p *problems, field string, in *workloadapi.NetworkAddress, out *mesh.Service) {
	network, addr := intern(in.GetNetwork()), decodeAddr(p, field, in.GetAddress())
	if in.Length == nil {
		out.VIPs = append(out.VIPs, mesh.NetworkAddress{Network: network, Addr: addr})
		return
	}
	out.CIDRs = append(out.CIDRs, mesh.NetworkPrefix{Network: network, Prefix: decodePrefix(p, field, in.GetAddress(), in.GetLength())})
}

// decodePrefix masks what lies below the length. A range of IPv4-mapped addresses is the IPv4 range that it means.
func decodePrefix(p *problems, field string, b []byte, length uint32) netip.Prefix {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		p.add(field, "%d bytes are no IP address", len(b))
		return netip.Prefix{}
	}
	if length > uint32(a.BitLen()) {
		p.add(field, "length %d exceeds the %d bits of %s", length, a.BitLen(), a)
		return netip.Prefix{}
	}
	if a.Is4In6() && length >= 96 {
		a, length = a.Unmap(), length-96
	}
	return netip.PrefixFrom(a, int(length)).Masked()
}

func encodePrefix(p *problems, field string, in netip.Prefix) ([]byte, uint32) {
	if !in.IsValid() {
		p.add(field, "%q is no address range", in)
		return nil, 0
	}
	return in.Addr().AsSlice(), uint32(in.Bits())
}

func decodeBalancing(p *problems, in *workloadapi.LoadBalancing) mesh.LoadBalancing {
	out := mesh.LoadBalancing{
		Mode:           decodeEnum[mesh.BalanceMode](p, "load_balancing.mode", in.GetMode()),
		AllowUnhealthy: decodeEnum[uint8](p, "load_balancing.health_policy", in.GetHealthPolicy()) != 0,
	}
	for i, s := range in.GetRoutingPreference() {
		field := index("load_balancing.routing_preference", i)
		if s == workloadapi.LoadBalancing_UNSPECIFIED_SCOPE {
			p.add(field, "unspecified")
		}
		out.Scopes = append(out.Scopes, decodeEnum[mesh.Scope](p, field, s))
	}
	return out
}

// EncodeService returns the resource's name and its Address, serialised. Equal services give equal bytes.
func EncodeService(s *mesh.Service) (name string, value []byte, err error) {
	p := &problems{}
	out := &workloadapi.Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, Ports: encodePorts(s.Ports), SubjectAltNames: s.SubjectAltNames,
		Waypoint: encodeGateway(p, "waypoint", s.Waypoint), IpFamilies: workloadapi.IPFamilies(s.Families),
		Canonical: s.Canonical, IngressUseWaypoint: s.IngressWaypoint, LoadBalancing: encodeBalancing(s.LoadBalancing),
	}
	if s.NamespacePrivate {
		out.Visibility = workloadapi.Visibility_NAMESPACE
	}
	if s.Namespace == "" {
		p.add("namespace", "missing")
	}
	if s.Hostname == "" {
		p.add("hostname", "missing")
	}
	for i, v := range s.VIPs {
		out.Addresses = append(out.Addresses, &workloadapi.NetworkAddress{Network: v.Network, Address: encodeAddr(p, index("vips", i), v.Addr)})
	}
	for i, c := range s.CIDRs {
		b, n := encodePrefix(p, index("cidrs", i), c.Prefix)
		out.Addresses = append(out.Addresses, &workloadapi.NetworkAddress{Network: c.Network, Address: b, Length: proto.Uint32(n)})
	}
	for i, w := range s.Waypoints {
		out.WeightedWaypoints = append(out.WeightedWaypoints, &workloadapi.WeightedWaypoint{
			Destination: encodeGateway(p, index("waypoints", i), &w.Destination), Weight: w.Weight,
		})
	}
	return encodeAddress(p, fmt.Sprintf("encode service %q", s.Key()), s.Key(), &workloadapi.Address{Type: &workloadapi.Address_Service{Service: out}})
}

func encodeBalancing(in mesh.LoadBalancing) *workloadapi.LoadBalancing {
	if in.Mode == mesh.BalanceStandard && len(in.Scopes) == 0 && !in.AllowUnhealthy {
		return nil
	}
	out := &workloadapi.LoadBalancing{Mode: workloadapi.LoadBalancing_Mode(in.Mode)}
	if in.AllowUnhealthy {
		out.HealthPolicy = workloadapi.LoadBalancing_ALLOW_ALL
	}
	for _, s := range in.Scopes {
		out.RoutingPreference = append(out.RoutingPreference, workloadapi.LoadBalancing_Scope(s))
	}
	return out
}
