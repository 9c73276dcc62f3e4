// SPDX-License-Identifier: Apache-2.0

// Package hold is the inside half of the namespaces driver: `lab hold`, PID 1 of a lab's own namespaces. It owns every
// process, link, rule and socket of the lab, and plays what a cluster has besides a mesh: kubelet, kube-proxy, the
// endpoints controller and a CNI project's NetworkPolicy, with the token issuer and DNS of package cluster and the network of
// package nodenet. It follows the requests of package order. When it ends, the kernel ends everything in it.
// Sources: the project's design, section "Labs: one scenario, three worlds"; pid_namespaces(7), user_namespaces(7).
package hold
