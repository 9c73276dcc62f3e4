// SPDX-License-Identifier: Apache-2.0

// Package telemetry is what proxies say about their connections: the access-log record (versioned: scenarios and
// reports read it), metrics with Istio's names and labels, and the headers that carry peer metadata and traces along a
// path (baggage, forwarded, traceparent). It is the only door to Prometheus. It decides nothing and knows no sockets.
// Sources: reference, "Metrics", "Access log", "The CONNECT exchange"; W3C Trace Context; RFC 7239.
package telemetry

import (
	"net/netip"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// RecordVersion is the version of Record as logged in JSON, in the key "schema". It changes when a key changes its
// meaning or goes away, not when one is added.
const RecordVersion = 1

// Direction says which side of a connection reports it.
type Direction string

// Directions.
const (
	Inbound  Direction = "inbound"  // the destination's proxy
	Outbound Direction = "outbound" // the source's proxy
)

// Security policies of a connection.
const (
	MutualTLS       = "mutual_tls"
	SecurityUnknown = "unknown"
)

// Flags say how a connection failed; "" is written as FlagNone.
const (
	FlagNone          = "-"
	FlagDeny          = "DENY"
	FlagConnect       = "CONNECT"
	FlagTLS           = "TLS_FAILURE"
	FlagH2            = "H2_HANDSHAKE_FAILURE"
	FlagNetworkPolicy = "NETWORK_POLICY"
	FlagIdentity      = "IDENTITY_ERROR"
	FlagRevoked       = "CERT_REVOKED"
)

// Peer is one end of a connection. Empty fields are unknown.
type Peer struct {
	Addr      netip.AddrPort
	Name      string // the pod's own name: what the log calls the workload
	Workload  string // its owner's name: what the metrics call the workload
	Namespace string
	Cluster   string
	Identity  mesh.Identity

	CanonicalName, CanonicalRevision string
	App, Version                     string // "" means the canonical ones
	Region, Zone                     string

	Claimed bool // all but Addr, Namespace and Identity is the peer's own word
}

// PeerOf is the peer that w is, seen at addr. Its identity is the one that w should have: callers that know the
// peer's certificate overwrite it.
func PeerOf(w *mesh.Workload, addr netip.AddrPort) Peer {
	if w == nil {
		return Peer{Addr: addr}
	}
	return Peer{
		Addr: addr, Name: w.Name, Workload: w.WorkloadName, Namespace: w.Namespace, Cluster: w.ClusterID,
		Identity: w.Identity(), CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Region: w.Locality.Region, Zone: w.Locality.Zone,
	}
}

// Record is what is known of one connection. Sent and received are the local workload's view: on the outbound side
// BytesSent is what the client sent (the request), on the inbound side what the server sent (the response).
type Record struct {
	Start     time.Time
	Time      time.Time // completion; zero: when it is logged
	Direction Direction
	Src, Dst  Peer
	HBONEAddr netip.AddrPort // the CONNECT authority, if tunnelled by address

	Service, ServiceNamespace, ServiceName string // the destination service: its hostname, namespace and name

	Security  string // MutualTLS, or "" for SecurityUnknown
	Flags     string // "" for FlagNone
	BytesSent uint64
	BytesRecv uint64
	Duration  time.Duration // 0: Time less Start
	Err       error
	Policy    string         // "namespace/name" of the policy that decided
	TraceID   string         // 32 hex digits, the same on every hop
	Upstream  netip.AddrPort // the local address of the socket to the next hop

	series            *series // the metrics of this label set, found when the connection was opened
	request, response uint64  // bytes that these have counted
}

// SetService fills in the destination service from s, which may be nil.
func (r *Record) SetService(s *mesh.Service) {
	if s != nil {
		r.Service, r.ServiceNamespace, r.ServiceName = s.Hostname, s.Namespace, s.Name
	}
}

func (r *Record) security() string {
	if r.Security == "" {
		return SecurityUnknown
	}
	return r.Security
}

func (r *Record) flags() string {
	if r.Flags == "" {
		return FlagNone
	}
	return r.Flags
}
