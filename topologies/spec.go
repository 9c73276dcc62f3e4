// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
)

// APIVersion and Kind are what every topology file says of itself.
const (
	APIVersion = "ambientlab.dev/v1alpha1"
	Kind       = "Topology"
)

// Spec is one topology, complete: Load has filled in every default and found no problem. It is read-only once loaded. As
// JSON it has the fields of a topology file.
type Spec struct {
	Name        string     `json:"name"` // a DNS label; names the lab too
	Description string     `json:"description,omitempty"`
	Clusters    []Cluster  `json:"clusters"`
	External    []External `json:"external,omitempty"`
	Links       []Link     `json:"links,omitempty"`
	Debug       Debug      `json:"debug,omitzero"`
}

// Document is the topology, with its defaults filled in, as Load reads it: JSON, which is YAML.
func (s *Spec) Document() ([]byte, error) {
	text, err := json.Marshal(struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		*Spec
	}{APIVersion, Kind, s})
	if err != nil {
		return nil, fmt.Errorf("encode topology %s: %w", s.Name, err)
	}
	return text, nil
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
	Name        string   `json:"name"`              // the cluster id that workloads report, "Kubernetes" by default
	Network     string   `json:"network,omitempty"` // "" is the default network
	TrustDomain string   `json:"trustDomain,omitempty"`
	Domain      string   `json:"domain,omitempty"` // the DNS domain of services, "cluster.local" by default
	IPFamily    IPFamily `json:"ipFamily"`

	PodSubnets     []netip.Prefix `json:"podSubnets,omitempty"`     // one per family, IPv4 first; cut into a /24 or /64 per node
	ServiceSubnets []netip.Prefix `json:"serviceSubnets,omitempty"` // one per family, IPv4 first

	// KubeProxyMode is how kube-proxy has nodes translate services' addresses: "" is as the cluster has it. A driver that
	// cannot choose refuses every other.
	KubeProxyMode KubeProxyMode `json:"kubeProxyMode,omitempty"`

	Nodes      []Node           `json:"nodes"`
	Namespaces []Namespace      `json:"namespaces,omitempty"`
	Workloads  []Workload       `json:"workloads,omitempty"`
	Services   []Service        `json:"services,omitempty"`
	Objects    []runtime.Object `json:"objects,omitempty"` // typed, in the order of the file
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

// KubeProxyMode is one of kube-proxy's modes on Linux.
type KubeProxyMode string

// Modes of kube-proxy.
const (
	KubeProxyIPTables KubeProxyMode = "iptables"
	KubeProxyNFTables KubeProxyMode = "nftables"
	KubeProxyIPVS     KubeProxyMode = "ipvs"
)

// Node is a machine of a cluster.
type Node struct {
	Name   string            `json:"name"`
	Zone   string            `json:"zone,omitempty"`
	Region string            `json:"region,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`

	// Network is that of the node and its pods, the cluster's by default. Between networks only istio-system's pods reach
	// each other, as a control plane behind a gateway would be reached: to workloads of another network there is no route.
	Network string `json:"network,omitempty"`
	// MTU is that of the node's own link and of its pods', 1500 by default.
	MTU int `json:"mtu,omitempty"`
	// PlainPackets turns segmentation and checksum offload off on those links, so that captures show packets as they would
	// be on a wire, not what a network card would make of one.
	PlainPackets bool `json:"plainPackets,omitempty"`
}

// Namespace is a Kubernetes namespace.
type Namespace struct {
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Workload becomes a service account and one pod per replica. A single replica's pod is named like the workload,
// several are named <name>-0, <name>-1, ….
type Workload struct {
	Name           string            `json:"name"`
	Namespace      string            `json:"namespace,omitempty"`
	ServiceAccount string            `json:"serviceAccount,omitempty"` // the workload's name by default
	Labels         map[string]string `json:"labels,omitempty"`
	Annotations    map[string]string `json:"annotations,omitempty"`
	Nodes          []string          `json:"nodes"` // replica i runs on Nodes[i % len]; all nodes, starting at the workload's index, by default
	Replicas       int               `json:"replicas"`
	Serve          Serve             `json:"serve,omitzero"` // what the workload binary's server listens on; unused with Command
	Capabilities   CapabilityChange  `json:"capabilities,omitzero"`
	Env            map[string]string `json:"env,omitempty"`
	Command        []string          `json:"command,omitempty"` // overrides the workload binary's server
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
	Add  []string `json:"add,omitempty"`
	Drop []string `json:"drop,omitempty"`
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

// MarshalText makes a port the same string in JSON.
func (p Port) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *Port) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePort(string(text))
	return err
}

// Serve lists the ports of the workload binary's server by protocol.
type Serve struct {
	HTTP           []Port `json:"http,omitempty"` // HTTP/1.1, with WebSocket at /ws
	H2C            []Port `json:"h2c,omitempty"`  // HTTP/2 with prior knowledge
	GRPC           []Port `json:"grpc,omitempty"`
	TLS            []Port `json:"tls,omitempty"`            // HTTPS, HTTP/1.1 and HTTP/2 by ALPN
	TCP            []Port `json:"tcp,omitempty"`            // echo
	TCPServerFirst []Port `json:"tcpServerFirst,omitempty"` // banner, then echo
	UDP            []Port `json:"udp,omitempty"`            // echo
}

// Service is a Kubernetes service.
type Service struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Selector    map[string]string `json:"selector,omitempty"` // empty: endpoints come from EndpointSlices among Objects
	Ports       []ServicePort     `json:"ports,omitempty"`
	Headless    bool              `json:"headless,omitempty"`
	ClusterIPs  []netip.Addr      `json:"clusterIPs,omitempty"` // empty: allocated; see Objects
}

// ServicePort is one port of a service.
type ServicePort struct {
	Name        string `json:"name"`
	Port        uint16 `json:"port"`
	TargetPort  uint16 `json:"targetPort"`         // Port by default
	Protocol    string `json:"protocol,omitempty"` // TCP or UDP
	AppProtocol string `json:"appProtocol,omitempty"`
}

// External is a host on the underlay, outside every cluster and the mesh. It runs the workload binary's server.
type External struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Serve     Serve        `json:"serve,omitzero"`
	MTU       int          `json:"mtu,omitempty"` // of its link, 1500 by default
}

// Link narrows the path between two machines, nodes or external hosts, in both directions: a larger packet is refused by
// the router before it, with an ICMP message that says so. Without one, the smaller MTU of the two is the path's.
type Link struct {
	Between []string `json:"between"` // two names
	MTU     int      `json:"mtu"`
}

// PathMTU is the largest packet that passes between two machines.
func (s *Spec) PathMTU(a, b string) int {
	mtu := min(s.mtuOf(a), s.mtuOf(b))
	for _, l := range s.Links {
		if slices.Contains(l.Between, a) && slices.Contains(l.Between, b) && a != b {
			mtu = min(mtu, l.MTU)
		}
	}
	return mtu
}

// mtuOf is a machine's own MTU.
func (s *Spec) mtuOf(name string) int {
	for i := range s.Clusters {
		for _, n := range s.Clusters[i].Nodes {
			if n.Name == name {
				return n.MTU
			}
		}
	}
	for _, e := range s.External {
		if e.Name == name {
			return e.MTU
		}
	}
	return DefaultMTU
}

// Debug switches aids that weaken the lab; all are off unless asked for.
type Debug struct {
	// TLSKeys makes the mesh's daemons log the secrets of their TLS connections from their start, so that captures can be read.
	TLSKeys bool `json:"tlsKeys,omitempty"`
}
