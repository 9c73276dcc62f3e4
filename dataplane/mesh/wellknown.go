// SPDX-License-Identifier: Apache-2.0

package mesh

import "net/netip"

// Ports that a proxy listens on (reference: ports). The first four are inside each enrolled pod's namespace.
const (
	PortOutbound  uint16 = 15001
	PortPlaintext uint16 = 15006
	PortHBONE     uint16 = 15008
	PortDNS       uint16 = 15053
	PortAdmin     uint16 = 15000
	PortMetrics   uint16 = 15020
	PortReadiness uint16 = 15021
	PortXDS       uint16 = 15012
)

// Marks and routing that keep a proxy's own packets apart from the application's (reference: in-pod rules).
const (
	// MarkProxy is the SO_MARK of every socket that a proxy makes in a pod's namespace.
	MarkProxy uint32 = 0x539
	// MarkConn is the connection mark of what the proxy originates towards the application with a spoofed source.
	MarkConn uint32 = 0x111
	// MarkMask is the part of a packet's mark that both of them use.
	MarkMask uint32 = 0xfff
	// RouteTable delivers packets marked MarkConn to the local host.
	RouteTable = 100
	// RulePriority is the priority of the policy rule that selects RouteTable.
	RulePriority = 32764
)

// Source addresses of kubelet probes after the host's SNAT; never redirected.
var (
	ProbeSourceV4 = netip.MustParseAddr("169.254.7.127")
	ProbeSourceV6 = netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
)

// IllegalPort reports whether no proxied call may have p as its destination: it would call the proxy itself.
func IllegalPort(p uint16) bool {
	return p == PortOutbound || p == PortPlaintext || p == PortHBONE
}

// Labels and annotations that decide about enrolment.
const (
	LabelDataplaneMode    = "istio.io/dataplane-mode" // on a namespace or a pod: "ambient" or "none"
	LabelUseWaypoint      = "istio.io/use-waypoint"
	LabelNetwork          = "topology.istio.io/network"    // on a pod, or on a node for its pods: their network
	LabelTunnel           = "networking.istio.io/tunnel"   // "http": the pod speaks HBONE itself
	AnnotationRedirection = "ambient.istio.io/redirection" // "enabled" or "pending", written by the agent
	AnnotationDNSCapture  = "ambient.istio.io/dns-capture" // "true" or "false"
	AnnotationBypass      = "ambient.istio.io/bypass-inbound-capture"
	AnnotationSidecar     = "sidecar.istio.io/status" // present on a pod with a sidecar: never ambient
	ModeAmbient           = "ambient"
	ModeNone              = "none"
	RedirectionEnabled    = "enabled"
	RedirectionPending    = "pending"
)
