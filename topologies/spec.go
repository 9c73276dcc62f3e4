// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/runtime"
)

// APIVersion and Kind are what every topology file says of itself.
const (
	APIVersion = "ambientlab.dev/v1alpha1"
	Kind       = "Topology"
)

// Spec is one topology, complete: Load has filled in every default and found no problem. It is read-only once loaded.
type Spec struct {
	Name        string // a DNS label; names the lab too
	Description string
	Clusters    []Cluster
	External    []External
	Debug       Debug
}

// Cluster finds a cluster by name; nil if there is none.
func (s *Spec) Cluster(name string) *Cluster {
	for i := range s.Clusters {
		if s.Clusters[i].Name == name {
			return &s.Clusters[i]
		}
	}
	return nil
}

// Cluster is one Kubernetes cluster.
type Cluster struct {
	Name        string // the cluster id that workloads report, "Kubernetes" by default
	Network     string // "" is the default network
	TrustDomain string
	Domain      string // the DNS domain of services, "cluster.local" by default
	IPFamily    IPFamily

	PodSubnets     []netip.Prefix // one per family, IPv4 first; cut into a /24 or /64 per node
	ServiceSubnets []netip.Prefix // one per family, IPv4 first

	Nodes      []Node
	Namespaces []Namespace
	Workloads  []Workload
	Services   []Service
	Objects    []runtime.Object // typed, in the order of the file
}

// IPFamily says which addresses pods and services have.
type IPFamily string

// IP families. With Dual, IPv4 comes first wherever order matters.
const (
	IPv4 IPFamily = "ipv4"
	IPv6 IPFamily = "ipv6"
	Dual IPFamily = "dual"
)

// Has4 reports whether pods have IPv4 addresses.
func (f IPFamily) Has4() bool { return f == IPv4 || f == Dual }

// Has6 reports whether pods have IPv6 addresses.
func (f IPFamily) Has6() bool { return f == IPv6 || f == Dual }

// Node is a machine of a cluster.
type Node struct {
	Name   string
	Zone   string
	Region string
	Labels map[string]string
}

// Namespace is a Kubernetes namespace.
type Namespace struct {
	Name        string
	Labels      map[string]string
	Annotations map[string]string
}

// Workload becomes a service account and one pod per replica. A single replica's pod is named like the workload,
// several are named <name>-0, <name>-1, ….
type Workload struct {
	Name           string
	Namespace      string
	ServiceAccount string // the workload's name by default
	Labels         map[string]string
	Annotations    map[string]string
	Nodes          []string // replica i runs on Nodes[i % len]; all nodes, starting at the workload's index, by default
	Replicas       int
	Serve          Serve // what the workload binary's server listens on; unused with Command
	Capabilities   CapabilityChange
	Env            map[string]string
	Command        []string // overrides the workload binary's server
}

// PodName is the name of replica i.
func (w *Workload) PodName(i int) string {
	if w.Replicas == 1 {
		return w.Name
	}
	return w.Name + "-" + itoa(i)
}

// Node is where replica i runs.
func (w *Workload) Node(i int) string { return w.Nodes[i%len(w.Nodes)] }

// CapabilityChange is relative to Kubernetes' default capabilities; names are without "CAP_".
type CapabilityChange struct {
	Add  []string
	Drop []string
}

// Bind is the address that a port is bound to.
type Bind string

// Binds. A port is written as "8080" or "8080@localhost" in YAML and on the workload binary's command line.
const (
	BindAny       Bind = "any"       // the wildcard, both families
	BindPod       Bind = "pod"       // the pod's addresses only
	BindLocalhost Bind = "localhost" // 127.0.0.1 and ::1 only
)

// Port is one listening port of the workload binary.
type Port struct {
	Number uint16
	Bind   Bind
}

// String is the form that ParsePort reads: "8080" or "8080@localhost".
func (p Port) String() string {
	if p.Bind == BindAny || p.Bind == "" {
		return itoa(int(p.Number))
	}
	return itoa(int(p.Number)) + "@" + string(p.Bind)
}

// Serve lists the ports of the workload binary's server by protocol.
type Serve struct {
	HTTP           []Port // HTTP/1.1, with WebSocket at /ws
	H2C            []Port // HTTP/2 with prior knowledge
	GRPC           []Port
	TLS            []Port // HTTPS, HTTP/1.1 and HTTP/2 by ALPN
	TCP            []Port // echo
	TCPServerFirst []Port // banner, then echo
	UDP            []Port // echo
}

// Service is a Kubernetes service.
type Service struct {
	Name        string
	Namespace   string
	Labels      map[string]string
	Annotations map[string]string
	Selector    map[string]string // empty: endpoints come from EndpointSlices among Objects
	Ports       []ServicePort
	Headless    bool
	ClusterIPs  []netip.Addr // empty: allocated; see Objects
}

// ServicePort is one port of a service.
type ServicePort struct {
	Name        string
	Port        uint16
	TargetPort  uint16 // Port by default
	Protocol    string // TCP or UDP
	AppProtocol string
}

// External is a host on the underlay, outside every cluster and the mesh. It runs the workload binary's server.
type External struct {
	Name      string
	Addresses []netip.Addr
	Serve     Serve
}

// Debug switches aids that weaken the lab; all are off unless asked for.
type Debug struct {
	TLSKeys bool // log session keys beside captures
}
