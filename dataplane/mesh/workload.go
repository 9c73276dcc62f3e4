// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"sort"
)

// Tunnel is how a workload wants to be reached.
type Tunnel uint8

// Tunnel protocols; the zero value is plain TCP.
const (
	TunnelNone Tunnel = iota
	TunnelHBONE
)

func (t Tunnel) String() string {
	if t == TunnelHBONE {
		return "HBONE"
	}
	return "TCP"
}

// Health is a workload's readiness; the zero value is healthy.
type Health uint8

// Health states.
const (
	Healthy Health = iota
	Unhealthy
)

func (h Health) String() string {
	if h == Unhealthy {
		return "Unhealthy"
	}
	return "Healthy"
}

// WorkloadType names the kind of a workload's owner, for telemetry.
type WorkloadType uint8

// Workload types, with the wire's numbers.
const (
	Deployment WorkloadType = iota
	CronJob
	Pod
	Job
)

func (t WorkloadType) String() string {
	switch t {
	case CronJob:
		return "cronjob"
	case Pod:
		return "pod"
	case Job:
		return "job"
	default:
		return "deployment"
	}
}

// NetworkMode says whether a workload's addresses are its own; a host-network workload is not found by address.
type NetworkMode uint8

// Network modes.
const (
	NetworkStandard NetworkMode = iota
	NetworkHost
)

// NetworkAddress is an address within a named network; "" is the default network.
type NetworkAddress struct {
	Network string
	Addr    netip.Addr
}

// String is "network/address", the alias that the wire uses for both workloads and services.
func (a NetworkAddress) String() string { return a.Network + "/" + a.Addr.String() }

// NetworkPrefix is a range of VIPs within a network.
type NetworkPrefix struct {
	Network string
	Prefix  netip.Prefix
}

// Hostname is a service's host within a namespace.
type Hostname struct {
	Namespace string
	Host      string
}

// Key is "namespace/host", a service's primary key on the wire.
func (h Hostname) Key() string { return h.Namespace + "/" + h.Host }

// GatewayAddress locates a waypoint or a network gateway: by hostname if Host is set, else by address.
type GatewayAddress struct {
	Hostname  Hostname
	Address   NetworkAddress
	HBONEPort uint16
}

// Locality is where a workload runs; "" is unknown.
type Locality struct {
	Region, Zone, Subzone string
}

// PortMap is one port of a service and where an endpoint serves it. TargetPort 0 means "as the service says".
type PortMap struct {
	ServicePort uint16
	TargetPort  uint16
	AppProtocol AppProtocol
}

// AppProtocol is what a service says its port speaks; ztunnel never acts on it.
type AppProtocol uint8

// Application protocols, with the wire's numbers.
const (
	ProtocolUnknown AppProtocol = iota
	ProtocolHTTP11
	ProtocolHTTP2
	ProtocolGRPC
	ProtocolTCP
	ProtocolTLS
)

// Membership says that a workload is an endpoint of the service Key ("namespace/host"), and on which ports.
type Membership struct {
	Key   string
	Ports []PortMap // sorted by ServicePort
}

// ApplicationTunnel asks the proxy to reach the application through a proxy protocol ("sandwiched" waypoints).
type ApplicationTunnel struct {
	ProxyProtocol bool // false: no header, just the port
	Port          uint16
}

// Workload is one endpoint: usually a pod. A proxy holds as many as the mesh has, so what is small stands together.
type Workload struct {
	UID            string
	Name           string
	Namespace      string
	Addresses      []netip.Addr
	Network        string
	TrustDomain    string // "" means DefaultTrustDomain
	ServiceAccount string // "" means DefaultServiceAccount

	Tunnel       Tunnel
	Type         WorkloadType
	NetworkMode  NetworkMode
	NativeTunnel bool // terminates HBONE itself; its inbound is not ours
	Status       Health
	Capacity     uint32 // weight for load balancing; decoders turn an absent value into 1

	Waypoint       *GatewayAddress // nil: none
	NetworkGateway *GatewayAddress // nil: reachable directly

	Node              string
	CanonicalName     string
	CanonicalRevision string
	WorkloadName      string
	ClusterID         string
	Locality          Locality
	Hostname          string

	Services              []Membership // sorted by Key
	AuthorizationPolicies []string     // "namespace/name", selector-scoped policies only
	ApplicationTunnel     *ApplicationTunnel
}

// Identity is the workload's SPIFFE identity, with the wire's defaults filled in.
func (w *Workload) Identity() Identity {
	id := Identity{TrustDomain: w.TrustDomain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}
	if id.TrustDomain == "" {
		id.TrustDomain = DefaultTrustDomain
	}
	if id.ServiceAccount == "" {
		id.ServiceAccount = DefaultServiceAccount
	}
	return id
}

// Membership finds the workload's membership of the service key.
func (w *Workload) Membership(key string) (Membership, bool) {
	i := sort.Search(len(w.Services), func(i int) bool { return w.Services[i].Key >= key })
	if i < len(w.Services) && w.Services[i].Key == key {
		return w.Services[i], true
	}
	return Membership{}, false
}

// Scope is a criterion by which an endpoint may be near its client.
type Scope uint8

// Scopes, with the wire's numbers.
const (
	ScopeUnspecified Scope = iota
	ScopeRegion
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

// BalanceMode is how Scopes are used.
type BalanceMode uint8

// Balancing modes, with the wire's numbers.
const (
	BalanceStandard    BalanceMode = iota // weighted random over all
	BalanceStrict                         // only endpoints equal in every scope
	BalanceFailover                       // the best common prefix of scopes wins
	BalancePassthrough                    // the original address
)

// LoadBalancing is a service's endpoint preference; the zero value is weighted random.
type LoadBalancing struct {
	Mode           BalanceMode
	Scopes         []Scope
	AllowUnhealthy bool
}

// IPFamilies restricts which of an endpoint's addresses a service may use.
type IPFamilies uint8

// IP families, with the wire's numbers.
const (
	FamiliesAutomatic IPFamilies = iota
	FamiliesIPv4
	FamiliesIPv6
	FamiliesDual
)

// WeightedWaypoint is one of several waypoints among which connections are shared out.
type WeightedWaypoint struct {
	Destination GatewayAddress
	Weight      uint32
}

// Service is a name with virtual addresses in front of workloads.
type Service struct {
	Name             string
	Namespace        string
	Hostname         string
	VIPs             []NetworkAddress
	CIDRs            []NetworkPrefix
	Ports            []PortMap // sorted by ServicePort
	SubjectAltNames  []string
	Waypoint         *GatewayAddress
	Waypoints        []WeightedWaypoint
	LoadBalancing    LoadBalancing
	Families         IPFamilies
	Canonical        bool
	IngressWaypoint  bool
	NamespacePrivate bool // visible only from its own namespace
}

// Key is "namespace/hostname".
func (s *Service) Key() string { return s.Namespace + "/" + s.Hostname }

// Port finds the service's port p.
func (s *Service) Port(p uint16) (PortMap, bool) { return FindPort(s.Ports, p) }

// FindPort searches ports, sorted by ServicePort, for p.
func FindPort(ports []PortMap, p uint16) (PortMap, bool) {
	i := sort.Search(len(ports), func(i int) bool { return ports[i].ServicePort >= p })
	if i < len(ports) && ports[i].ServicePort == p {
		return ports[i], true
	}
	return PortMap{}, false
}
