// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/xds/workloadapi"
)

// deterministic bytes make a hash of them a version.
var deterministic = proto.MarshalOptions{Deterministic: true}

// DecodeAddress reads an Address resource. Exactly one of the results is set if err is nil; err names every bad field.
// The results share no memory with value.
func DecodeAddress(value []byte) (*mesh.Workload, *mesh.Service, error) {
	var a workloadapi.Address
	if err := proto.Unmarshal(value, &a); err != nil {
		return nil, nil, fmt.Errorf("decode address: %w", err)
	}
	switch t := a.GetType().(type) {
	case *workloadapi.Address_Workload:
		w, err := decodeWorkload(t.Workload)
		return w, nil, err
	case *workloadapi.Address_Service:
		s, err := decodeService(t.Service)
		return nil, s, err
	default:
		return nil, nil, fmt.Errorf("decode address: neither a workload nor a service")
	}
}

func decodeWorkload(in *workloadapi.Workload) (*mesh.Workload, error) {
	p := &problems{}
	out := &mesh.Workload{
		UID: in.GetUid(), Name: in.GetName(), Namespace: intern(in.GetNamespace()), Network: intern(in.GetNetwork()),
		TrustDomain: intern(in.GetTrustDomain()), ServiceAccount: intern(in.GetServiceAccount()),
		Waypoint:       decodeGateway(p, "waypoint", in.GetWaypoint()),
		NetworkGateway: decodeGateway(p, "network_gateway", in.GetNetworkGateway()),
		Node:           intern(in.GetNode()), ClusterID: intern(in.GetClusterId()), Hostname: in.GetHostname(),
		CanonicalName: intern(in.GetCanonicalName()), CanonicalRevision: intern(in.GetCanonicalRevision()),
		Type: decodeEnum[mesh.WorkloadType](p, "workload_type", in.GetWorkloadType()), WorkloadName: intern(in.GetWorkloadName()),
		NetworkMode:  decodeEnum[mesh.NetworkMode](p, "network_mode", in.GetNetworkMode()),
		Status:       decodeEnum[mesh.Health](p, "status", in.GetStatus()),
		NativeTunnel: in.GetNativeTunnel(), Capacity: 1,
		Locality: mesh.Locality{
			Region: intern(in.GetLocality().GetRegion()), Zone: intern(in.GetLocality().GetZone()), Subzone: intern(in.GetLocality().GetSubzone()),
		},
	}
	if out.UID == "" {
		p.add("uid", "missing")
	}
	if c := in.GetCapacity(); c != nil {
		out.Capacity = c.GetValue()
	}
	switch t := in.GetTunnelProtocol(); t {
	case workloadapi.TunnelProtocol_NONE, workloadapi.TunnelProtocol_HBONE:
		out.Tunnel = mesh.Tunnel(t)
	default:
		p.add("tunnel_protocol", "%s is not supported", t)
	}
	for i, b := range in.GetAddresses() {
		out.Addresses = append(out.Addresses, decodeAddr(p, index("addresses", i), b))
	}
	decodeAttachments(p, in, out)
	if err := p.err(fmt.Sprintf("decode workload %q", out.UID)); err != nil {
		return nil, err
	}
	return out, nil
}

// decodeAttachments fills in what ties the workload to other objects.
func decodeAttachments(p *problems, in *workloadapi.Workload, out *mesh.Workload) {
	for key, list := range in.GetServices() {
		field := fmt.Sprintf("services[%q]", key)
		checkKey(p, field, key)
		out.Services = append(out.Services, mesh.Membership{Key: intern(key), Ports: decodePorts(p, field+".ports", list.GetPorts())})
	}
	slices.SortFunc(out.Services, func(a, b mesh.Membership) int { return strings.Compare(a.Key, b.Key) })
	for i, key := range in.GetAuthorizationPolicies() {
		checkKey(p, index("authorization_policies", i), key)
		out.AuthorizationPolicies = append(out.AuthorizationPolicies, intern(key))
	}
	if t := in.GetApplicationTunnel(); t != nil {
		out.ApplicationTunnel = &mesh.ApplicationTunnel{
			ProxyProtocol: decodeEnum[uint8](p, "application_tunnel.protocol", t.GetProtocol()) != 0,
			Port:          decodePort(p, "application_tunnel.port", t.GetPort()),
		}
	}
}

// EncodeWorkload returns the resource's name and its Address, serialised. Equal workloads give equal bytes.
// Capacity is sent as it is, 0 included: 1 is what a workload has that was given none.
func EncodeWorkload(w *mesh.Workload) (name string, value []byte, err error) {
	p := &problems{}
	out := &workloadapi.Workload{
		Uid: w.UID, Name: w.Name, Namespace: w.Namespace, Network: w.Network,
		TunnelProtocol: workloadapi.TunnelProtocol(w.Tunnel), TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount,
		Waypoint:       encodeGateway(p, "waypoint", w.Waypoint),
		NetworkGateway: encodeGateway(p, "network_gateway", w.NetworkGateway),
		Node:           w.Node, ClusterId: w.ClusterID, Hostname: w.Hostname,
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		WorkloadType: workloadapi.WorkloadType(w.Type), WorkloadName: w.WorkloadName,
		NetworkMode: workloadapi.NetworkMode(w.NetworkMode), Status: workloadapi.WorkloadStatus(w.Status),
		NativeTunnel: w.NativeTunnel, AuthorizationPolicies: w.AuthorizationPolicies,
	}
	if w.UID == "" {
		p.add("uid", "missing")
	}
	if w.Capacity != 1 {
		out.Capacity = wrapperspb.UInt32(w.Capacity)
	}
	if l := w.Locality; l != (mesh.Locality{}) {
		out.Locality = &workloadapi.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	if t := w.ApplicationTunnel; t != nil {
		out.ApplicationTunnel = &workloadapi.ApplicationTunnel{Port: uint32(t.Port)}
		if t.ProxyProtocol {
			out.ApplicationTunnel.Protocol = workloadapi.ApplicationTunnel_PROXY
		}
	}
	for i, a := range w.Addresses {
		out.Addresses = append(out.Addresses, encodeAddr(p, index("addresses", i), a))
	}
	if len(w.Services) > 0 {
		out.Services = make(map[string]*workloadapi.PortList, len(w.Services))
		for _, m := range w.Services {
			checkKey(p, "services", m.Key)
			out.Services[m.Key] = &workloadapi.PortList{Ports: encodePorts(m.Ports)}
		}
	}
	return encodeAddress(p, fmt.Sprintf("encode workload %q", w.UID), w.UID, &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: out}})
}

func encodeAddress(p *problems, what, name string, a *workloadapi.Address) (string, []byte, error) {
	if err := p.err(what); err != nil {
		return "", nil, err
	}
	value, err := deterministic.Marshal(a)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", what, err)
	}
	return name, value, nil
}
