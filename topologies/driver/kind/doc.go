// SPDX-License-Identifier: Apache-2.0

// Package kind is the driver whose lab is a kind cluster of its own: real kubelets, containerd, kube-proxy and a CNI chain in
// containers of this machine's Docker daemon. What a lab is on a cluster is package kube's; this one makes clusters, loads
// images, reaches nodes through a `docker exec` that stays, has nodenet make links of other MTUs, and plays external hosts as containers
// beside them.
//
// Clusters are made by the pinned kind command (tools/kind), each with a unique name and a kubeconfig of its own; nobody's
// own kubeconfig is touched. A Pool keeps clusters between the labs of one process, since a cluster takes half a minute and a
// mesh in it seconds. A CNI that was asked for is installed before nodes are awaited, and makes a cluster another one. What a process
// left behind when it was killed, Sweep removes.
package kind
