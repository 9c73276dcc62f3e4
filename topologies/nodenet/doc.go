// SPDX-License-Identifier: Apache-2.0

// Package nodenet is a node's pod network where no CNI project can be had: routes between nodes, forwarding, and what
// kube-proxy does (virtual addresses of services, TCP and UDP, both address families). A Plan is a value, computed and printed, then
// applied to the node's network namespace with nftables and netlink. Underlay wires nodes and outside hosts together.
// Links of pods and their addresses are a CNI plugin's work (ptp), choosing endpoints is the caller's. Links say how wide links are, and
// whether their packets are as on a wire.
// NetworkPolicy is a table of its own beside this one (package policy), at the same hooks with a later priority, so that the
// two are planned, applied and removed apart; nothing here assumes that it exists.
// Sources: Kubernetes' "Virtual IPs and Service Proxies", nft(8), ip-sysctl.
package nodenet
