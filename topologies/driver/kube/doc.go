// SPDX-License-Identifier: Apache-2.0

// Package kube realises a topology on a Kubernetes cluster that stands already and is reached by a kubeconfig. It makes no
// cluster and loads no image: driver/kind does, and embeds this one. What it installs is package install's to say; what the
// API server cannot do, such as recording packets, it does through a Host, if its caller has one.
// Sources: Kubernetes API concepts (server-side apply, watches, exec and port-forward over WebSocket); the project's design,
// section "Labs: one scenario, three worlds".
package kube
