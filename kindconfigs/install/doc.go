// SPDX-License-Identifier: Apache-2.0

// Package install renders what a mesh needs on a Kubernetes cluster to objects: custom resources, accounts and what they may
// do, the control plane, and a proxy and an agent per node. It applies nothing: drivers and kubectl do. The one image that
// all containers run is package image's work.
// Sources: Istio's Helm charts for ztunnel, istio-cni and istiod (names, labels, capabilities, volumes).
package install
