// SPDX-License-Identifier: Apache-2.0

// Package identity gives workloads their certificates and judges those of their peers: keys and requests, the client of
// a certificate authority, the cache that keeps certificates fresh, the TLS configurations of both sides, and the signing
// authority that a control plane keeps on disk.
// Who may ask for which identity is control's decision; what an identity may do is authz's.
// Sources: SPIFFE X.509-SVID; Istio's ca.proto; ztunnel's certificate manager (reference: TLS, CA).
package identity
