// SPDX-License-Identifier: Apache-2.0

package schema

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// KindGraph is a document of Graph.
const KindGraph = "MeshGraph"

// Graph is who talked to whom in a mesh, and how, during a window of time. Everything in it was observed: edges come from
// the records and counters of the proxies, so that traffic that met no proxy is not in it.
type Graph struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Lab        string      `json:"lab"`
	From       time.Time   `json:"from"`
	To         time.Time   `json:"to"`
	Nodes      []GraphNode `json:"nodes"` // sorted by kind, namespace and name
	Edges      []GraphEdge `json:"edges"` // sorted by from, to, service and protocol
}

// GraphKind is what a node of a graph is.
type GraphKind string

// Kinds of nodes.
const (
	GraphWorkload GraphKind = "workload" // a pod
	GraphService  GraphKind = "service"
	GraphExternal GraphKind = "external" // a host outside the cluster
)

// Enrolment is a workload's place in the mesh.
type Enrolment string

// Enrolments.
const (
	Ambient  Enrolment = "ambient" // captured, and served by its node's ztunnel
	Pending  Enrolment = "pending" // to be captured, but not served yet
	Outside  Enrolment = "outside" // not in the mesh
	MeshPart Enrolment = "mesh"    // a part of the mesh itself: ztunnel, the control plane
)

// GraphNode is a workload, a service or a host.
type GraphNode struct {
	ID        string    `json:"id"` // "workload/shop/web", "service/shop/cart", "external/10.0.0.9"
	Kind      GraphKind `json:"kind"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name"`
	Addresses []string  `json:"addresses,omitempty"`

	// Of a workload.
	Node      string    `json:"node,omitempty"` // the machine that it runs on
	Enrolment Enrolment `json:"enrolment,omitempty"`
	Identity  string    `json:"identity,omitempty"` // that it should have

	// Of a service.
	Endpoints []string `json:"endpoints,omitempty"` // ids of workloads
}

// GraphProtocol is what an edge's connections were on the wire.
type GraphProtocol string

// Protocols of edges.
const (
	GraphHBONE  GraphProtocol = "HBONE"  // mutual TLS, both ends proven
	GraphPlain  GraphProtocol = "plain"  // TCP that the mesh neither encrypted nor authenticated
	GraphDenied GraphProtocol = "denied" // refused by policy
)

// GraphEdge is the connections from one node to another by one service and protocol.
type GraphEdge struct {
	From     string        `json:"from"`              // id
	To       string        `json:"to"`                // id
	Service  string        `json:"service,omitempty"` // id of the service that was asked for
	Protocol GraphProtocol `json:"protocol"`
	Ports    []int         `json:"ports"` // of the destination, sorted

	SourceIdentity      string `json:"sourceIdentity,omitempty"` // as the peers proved it
	DestinationIdentity string `json:"destinationIdentity,omitempty"`

	Connections   int            `json:"connections"` // ended or failed in the window, and open
	Open          int            `json:"open"`        // open at its end
	RatePerSecond float64        `json:"ratePerSecond"`
	BytesSent     uint64         `json:"bytesSent"` // by From; of open connections all so far
	BytesReceived uint64         `json:"bytesReceived"`
	Errors        int            `json:"errors"`
	Flags         map[string]int `json:"flags,omitempty"`     // response flags of those that failed
	LastError     string         `json:"lastError,omitempty"` // the text of the last one
	Policies      []string       `json:"policies,omitempty"`  // that denied

	// Counted is what the counters of From's proxy say since it started, which may be longer or shorter than the window; nil
	// if they do not tell this edge apart.
	Counted *GraphCounters `json:"counted,omitempty"`
}

// GraphCounters are totals of a proxy's metrics.
type GraphCounters struct {
	Opened        uint64 `json:"opened"`
	Failed        uint64 `json:"failed"`
	BytesSent     uint64 `json:"bytesSent"`
	BytesReceived uint64 `json:"bytesReceived"`
}

// Encode writes g as indented JSON, with its version and kind filled in.
func (g Graph) Encode(w io.Writer) error {
	g.APIVersion, g.Kind = Version, KindGraph
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(g)
}

// DecodeGraph reads a document that Encode wrote; an unknown version or field is an error.
func DecodeGraph(r io.Reader) (Graph, error) {
	var g Graph
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&g); err != nil {
		return Graph{}, fmt.Errorf("decode graph: %w", err)
	}
	if g.APIVersion != Version || g.Kind != KindGraph {
		return Graph{}, fmt.Errorf("decode graph: %w: %s %s, want %s %s", ErrVersion, g.APIVersion, g.Kind, Version, KindGraph)
	}
	return g, nil
}
