// SPDX-License-Identifier: Apache-2.0

// Package ztunnel is the node proxy: one process per node that carries the TCP connections of every enrolled pod, inside
// mutual TLS where the other side can, and in plain text where it cannot. It never reads application bytes.
//
// Each enrolled pod has one proxy with three listeners made inside the pod's network namespace: 15001 for what the pod
// sends, 15008 for HBONE it receives, 15006 for plain text it receives. A manager learns of pods over ZDS and owns the
// proxies; what is known of the rest of the mesh arrives as catalog snapshots.
// It leaves redirection to capture (the CNI agent applies it), choosing an endpoint to catalog, verdicts to authz, framing
// to hbone and certificates to identity.
// Sources: Istio architecture/ambient/ztunnel.md and ztunnel-cni-lifecycle.md (reference: A1, A3, A6, A7).
package ztunnel
