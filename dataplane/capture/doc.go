// SPDX-License-Identifier: Apache-2.0

// Package capture redirects a pod's TCP traffic (and, if asked, its DNS queries) to the proxy that listens inside the pod's
// network namespace. A Plan is a value that knows no back end: it is computed, printed and golden-tested, then applied to a
// namespace with nftables in one transaction, together with the policy route that brings replies to spoofed connections back.
// Entering namespaces is netns's work, deciding which pods are captured cni's.
// Sources: Istio's cni/pkg/iptables and cni/pkg/nftables (reference: in-pod rules), nft(8), ip-rule(8).
package capture
