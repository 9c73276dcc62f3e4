// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/netip"
	"strconv"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Dump is the config dump of a ztunnel. Slices and maps that are nil are written as empty ones.
type Dump struct {
	Workloads      List[Workload]       `json:"workloads"`
	Services       List[Service]        `json:"services"`
	Policies       List[Policy]         `json:"policies"`
	StagedServices Map[Map[Endpoint]]   `json:"stagedServices"` // service key → endpoint key
	StaticConfig   any                  `json:"staticConfig"`
	Version        any                  `json:"version"`
	Config         any                  `json:"config"`
	Certificates   List[Certificates]   `json:"certificates"`
	WorkloadState  Map[WorkloadState]   `json:"workloadState"` // by pod uid
	Pools          Map[List[PoolEntry]] `json:"pools,omitzero"`
}

// Workload is one workload of a dump.
type Workload struct {
	UID                   string             `json:"uid,omitempty"`
	WorkloadIPs           List[string]       `json:"workloadIps"`
	Waypoint              *Gateway           `json:"waypoint,omitempty"`
	NetworkGateway        *Gateway           `json:"networkGateway,omitempty"`
	Protocol              string             `json:"protocol"` // HBONE or TCP
	NetworkMode           string             `json:"networkMode"`
	Name                  string             `json:"name"`
	Namespace             string             `json:"namespace"`
	TrustDomain           string             `json:"trustDomain,omitempty"`
	ServiceAccount        string             `json:"serviceAccount,omitempty"`
	Network               string             `json:"network,omitempty"`
	WorkloadName          string             `json:"workloadName,omitempty"`
	WorkloadType          string             `json:"workloadType,omitempty"`
	CanonicalName         string             `json:"canonicalName,omitempty"`
	CanonicalRevision     string             `json:"canonicalRevision,omitempty"`
	Hostname              string             `json:"hostname,omitempty"`
	Node                  string             `json:"node,omitempty"`
	NativeTunnel          bool               `json:"nativeTunnel,omitempty"`
	ApplicationTunnel     *ApplicationTunnel `json:"applicationTunnel,omitempty"`
	AuthorizationPolicies []string           `json:"authorizationPolicies,omitempty"`
	Status                string             `json:"status"`
	ClusterID             string             `json:"clusterId"`
	Locality              *Locality          `json:"locality,omitempty"`
	Services              []string           `json:"services,omitempty"`
	Capacity              uint32             `json:"capacity"`
}

// Gateway is a waypoint or network gateway: "network/address" or "namespace/hostname".
type Gateway struct {
	Destination string `json:"destination"`
	HBONEPort   uint16 `json:"hboneMtlsPort"`
}

// ApplicationTunnel is how the proxy reaches a sandwiched application.
type ApplicationTunnel struct {
	Protocol string  `json:"protocol"` // NONE or PROXY
	Port     *uint16 `json:"port,omitempty"`
}

// Locality is where a workload runs.
type Locality struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Subzone string `json:"subzone,omitempty"`
}

// Service is one service of a dump.
type Service struct {
	Name            string         `json:"name"`
	Namespace       string         `json:"namespace"`
	Hostname        string         `json:"hostname"`
	VIPs            List[string]   `json:"vips"` // "network/address"
	CIDRVIPs        []string       `json:"cidrVips,omitempty"`
	Ports           Map[uint16]    `json:"ports"`
	Endpoints       Map[Endpoint]  `json:"endpoints"` // by workload uid
	SubjectAltNames List[string]   `json:"subjectAltNames"`
	Waypoint        *Gateway       `json:"waypoint,omitempty"`
	Waypoints       []WeightedGate `json:"weightedWaypoints,omitempty"`
	LoadBalancer    *LoadBalancer  `json:"loadBalancer,omitempty"`
	IPFamilies      string         `json:"ipFamilies,omitempty"`
	Canonical       bool           `json:"canonical,omitempty"`
	Visibility      string         `json:"visibility,omitempty"`
}

// WeightedGate is one of several waypoints.
type WeightedGate struct {
	Gateway
	Weight uint32 `json:"weight"`
}

// LoadBalancer is a service's endpoint preference.
type LoadBalancer struct {
	RoutingPreferences List[string] `json:"routingPreferences"`
	Mode               string       `json:"mode"`
	HealthPolicy       string       `json:"healthPolicy"`
}

// Endpoint is a workload's membership of a service.
type Endpoint struct {
	WorkloadUID string      `json:"workloadUid"`
	Port        Map[uint16] `json:"port"`
	Status      string      `json:"status"`
}

// Certificates is the state of one identity.
type Certificates struct {
	Identity  string            `json:"identity"`
	State     string            `json:"state"` // Available, Initializing, "Unavailable: …"
	CertChain List[Certificate] `json:"certChain"`
	RootCerts List[Certificate] `json:"rootCerts"`
}

// Certificate is one certificate; PEM is PEM text in base64, as upstream has it.
type Certificate struct {
	PEM            string `json:"pem"`
	SerialNumber   string `json:"serialNumber"` // decimal
	ValidFrom      string `json:"validFrom"`    // RFC 3339
	ExpirationTime string `json:"expirationTime"`
}

// WorkloadState is one enrolled pod.
type WorkloadState struct {
	State       string       `json:"state"` // Up or Pending
	Connections Connections  `json:"connections"`
	Info        WorkloadInfo `json:"info"`
}

// Connections are a pod's open connections.
type Connections struct {
	Inbound  List[Connection] `json:"inbound"`
	Outbound List[Connection] `json:"outbound"`
}

// Connection is one open connection. What follows Protocol is ours.
type Connection struct {
	Src         string    `json:"src"`
	OriginalDst *string   `json:"originalDst"` // inbound: the service's hostname, if known
	ActualDst   string    `json:"actualDst"`
	Protocol    string    `json:"protocol"`              // HBONE or TCP
	SrcIdentity string    `json:"srcIdentity,omitempty"` // only of mutual TLS, once it is established
	DstIdentity string    `json:"dstIdentity,omitempty"`
	Service     string    `json:"service,omitempty"` // the destination service's hostname, if known
	TraceID     string    `json:"traceId,omitempty"`
	BytesSent   uint64    `json:"bytesSent,omitempty"`
	BytesRecv   uint64    `json:"bytesRecv,omitempty"`
	Start       time.Time `json:"start,omitzero"`
}

// WorkloadInfo is what the node agent said of a pod.
type WorkloadInfo struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// PoolEntry is one pooled HBONE connection of a pod; ours.
type PoolEntry struct {
	Source       string    `json:"source"`
	Destinations string    `json:"destinations"`
	SourceIP     string    `json:"sourceIp"`
	Addr         string    `json:"addr"`
	Streams      int       `json:"streams"`
	Opened       time.Time `json:"opened"`
}

// DumpCertificates is the state of one identity; chain and roots may be nil.
func DumpCertificates(identity, state string, chain, roots []*x509.Certificate) Certificates {
	c := Certificates{Identity: identity, State: state}
	for _, v := range chain {
		c.CertChain = append(c.CertChain, dumpCertificate(v))
	}
	for _, v := range roots {
		c.RootCerts = append(c.RootCerts, dumpCertificate(v))
	}
	return c
}

func dumpCertificate(c *x509.Certificate) Certificate {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	return Certificate{
		PEM:            base64.StdEncoding.EncodeToString(text),
		SerialNumber:   c.SerialNumber.String(),
		ValidFrom:      c.NotBefore.UTC().Format(time.RFC3339),
		ExpirationTime: c.NotAfter.UTC().Format(time.RFC3339),
	}
}

func dumpGateway(g *mesh.GatewayAddress) *Gateway {
	if g == nil {
		return nil
	}
	d := &Gateway{Destination: g.Address.String(), HBONEPort: g.HBONEPort}
	if g.Hostname.Host != "" {
		d.Destination = g.Hostname.Key()
	}
	return d
}

func dumpPorts(ports []mesh.PortMap) Map[uint16] {
	m := make(Map[uint16], len(ports))
	for _, p := range ports {
		m[strconv.Itoa(int(p.ServicePort))] = p.TargetPort
	}
	return m
}

func addrStrings(as []netip.Addr) []string {
	var out []string
	for _, a := range as {
		out = append(out, a.String())
	}
	return out
}
