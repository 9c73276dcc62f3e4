// SPDX-License-Identifier: Apache-2.0

// Package shapes is what kind clusters look like: named ones as files that `kind create cluster --config` takes as they are, and
// a function that renders one to measure. It starts nothing, and what runs in a cluster is package install's work.
// Sources: kind's configuration API, kind.x-k8s.io/v1alpha4.
package shapes
