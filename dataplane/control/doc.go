// SPDX-License-Identifier: Apache-2.0

// Package control is the mesh's control plane: it compiles Kubernetes and Istio objects into a mesh snapshot, serves
// that over delta xDS, and is the certificate authority's door. Compiling is pure and total: the same objects give the
// same bytes and the same versions, so that a proxy that reconnects is sent only what changed.
// Where objects come from is source's work, keys and certificates are identity's, the wire format of resources is xds'.
// Sources: reference A2 (WDS over delta xDS), A4 (CA); xDS protocol, "Incremental xDS"; Kubernetes service semantics.
package control
