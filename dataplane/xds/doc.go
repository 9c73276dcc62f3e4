// SPDX-License-Identifier: Apache-2.0

// Package xds is the road from a control plane to a proxy: the codecs between the wire and mesh nouns, the delta discovery
// client, the discovery envelope for either side, and the YAML that stands in for a control plane.
// It keeps no state of the mesh: resources go to a Handler one by one, and what to do with them is catalog's work.
// The envelope is coded by hand, so that no proxy links or registers Envoy's types.
// Sources: Envoy's xDS protocol, "incremental xDS"; Istio's workload.proto and authorization.proto; ztunnel's local
// configuration.
package xds

// Type URLs of the resources that a proxy subscribes to.
const (
	TypeAddress       = "type.googleapis.com/istio.workload.Address"
	TypeWorkload      = "type.googleapis.com/istio.workload.Workload"
	TypeAuthorization = "type.googleapis.com/istio.security.Authorization"
)
