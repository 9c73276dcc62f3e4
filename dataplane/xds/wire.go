// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"net/netip"
	"slices"
	"strings"
	"unique"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/xds/workloadapi"
)

// intern keeps one copy of a string that many resources repeat (namespaces, nodes, service keys): with 100 000 workloads
// they would be most of the heap.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

// decodeAddr accepts 4 or 16 bytes; an IPv4-mapped address is the IPv4 address that it means.
func decodeAddr(p *problems, field string, b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		p.add(field, "%d bytes are no IP address", len(b))
	}
	return a.Unmap()
}

func encodeAddr(p *problems, field string, a netip.Addr) []byte {
	if !a.IsValid() || a.Zone() != "" {
		p.add(field, "%q is no IP address", a)
		return nil
	}
	return a.Unmap().AsSlice()
}

func decodePort(p *problems, field string, n uint32) uint16 {
	if n > 65535 {
		p.add(field, "%d is no port", n)
	}
	return uint16(n)
}

// decodeEnum checks an open enum's number: a value that is not known here must not be taken for the zero value.
func decodeEnum[T ~uint8](p *problems, field string, v protoreflect.Enum) T {
	if v.Descriptor().Values().ByNumber(v.Number()) == nil {
		p.add(field, "unknown value %d", v.Number())
	}
	return T(v.Number())
}

func checkKey(p *problems, field, key string) {
	if ns, name, ok := strings.Cut(key, "/"); !ok || ns == "" || name == "" {
		p.add(field, "%q: want namespace/name", key)
	}
}

// decodePorts sorts; of two entries for one service port the later wins.
func decodePorts(p *problems, field string, in []*workloadapi.Port) []mesh.PortMap {
	if len(in) == 0 {
		return nil
	}
	out := make([]mesh.PortMap, 0, len(in))
	for i, port := range in {
		m := mesh.PortMap{
			ServicePort: decodePort(p, index(field, i)+".service_port", port.GetServicePort()),
			TargetPort:  decodePort(p, index(field, i)+".target_port", port.GetTargetPort()),
		}
		// A protocol that is not known here is no reason to refuse: no proxy at L4 acts on it.
		if n := port.GetAppProtocol(); n >= 0 && n <= workloadapi.AppProtocol_TLS {
			m.AppProtocol = mesh.AppProtocol(n)
		}
		out = append(out, m)
	}
	return sortPorts(out)
}

func sortPorts(ports []mesh.PortMap) []mesh.PortMap {
	slices.SortStableFunc(ports, func(a, b mesh.PortMap) int { return int(a.ServicePort) - int(b.ServicePort) })
	out := ports[:0]
	for i, m := range ports {
		if i+1 < len(ports) && ports[i+1].ServicePort == m.ServicePort {
			continue
		}
		out = append(out, m)
	}
	return out
}

func encodePorts(in []mesh.PortMap) []*workloadapi.Port {
	out := make([]*workloadapi.Port, len(in))
	for i, m := range in {
		out[i] = &workloadapi.Port{
			ServicePort: uint32(m.ServicePort), TargetPort: uint32(m.TargetPort), AppProtocol: workloadapi.AppProtocol(m.AppProtocol),
		}
	}
	return out
}

func decodeGateway(p *problems, field string, in *workloadapi.GatewayAddress) *mesh.GatewayAddress {
	if in == nil {
		return nil
	}
	out := &mesh.GatewayAddress{HBONEPort: decodePort(p, field+".hbone_mtls_port", in.GetHboneMtlsPort())}
	switch d := in.GetDestination().(type) {
	case *workloadapi.GatewayAddress_Hostname:
		out.Hostname = mesh.Hostname{Namespace: intern(d.Hostname.GetNamespace()), Host: intern(d.Hostname.GetHostname())}
		if out.Hostname.Host == "" {
			p.add(field+".hostname", "no hostname")
		}
	case *workloadapi.GatewayAddress_Address:
		out.Address.Network = intern(d.Address.GetNetwork())
		out.Address.Addr = decodeAddr(p, field+".address", d.Address.GetAddress())
	default:
		p.add(field, "no destination")
	}
	return out
}

func encodeGateway(p *problems, field string, in *mesh.GatewayAddress) *workloadapi.GatewayAddress {
	if in == nil {
		return nil
	}
	out := &workloadapi.GatewayAddress{HboneMtlsPort: uint32(in.HBONEPort)}
	if in.Hostname.Host != "" {
		out.Destination = &workloadapi.GatewayAddress_Hostname{Hostname: &workloadapi.NamespacedHostname{
			Namespace: in.Hostname.Namespace, Hostname: in.Hostname.Host,
		}}
		return out
	}
	out.Destination = &workloadapi.GatewayAddress_Address{Address: &workloadapi.NetworkAddress{
		Network: in.Address.Network, Address: encodeAddr(p, field+".address", in.Address.Addr),
	}}
	return out
}
