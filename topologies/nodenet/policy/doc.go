// SPDX-License-Identifier: Apache-2.0

// Package policy enforces NetworkPolicy on a node's pods where no CNI project is there to do it, and stands in for one. A Plan is a
// pure function of policies and pods, applied to the node's network namespace as one nftables table, in one transaction.
//
// Packets are judged where the node forwards them, after a service's address was translated, once as leaving a pod and
// once as entering one; a pod that no policy selects is not judged. Where the API leaves it open: what is refused is dropped
// without an answer; established connections and their replies go on whatever policies become (as with Calico and Antrea;
// Cilium and OVN-Kubernetes judge every packet), so that a mesh's pooled tunnel outlives the policy that forbids its like
// (istio/istio#5815). A pod and its own node reach each other always, and so do kubelet's probes, whatever source they show
// (169.254.7.127 too); a pod reaches itself. Of a policy with a mistake nothing is taken. Addresses are believed: a pod with
// NET_RAW that forges a source is judged as the one it claims to be.
//
// A policy sees a mesh's wire, not what is in it: HBONE comes from the calling pod's address to port 15008, whatever the
// application's port is.
// Sources: Kubernetes' networking/v1 reference and "Network Policies"; nft(8).
package policy
