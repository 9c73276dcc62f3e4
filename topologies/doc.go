// SPDX-License-Identifier: Apache-2.0

// Package topologies describes a lab as one YAML document: clusters, nodes, namespaces, workloads, services and the
// hosts outside the mesh. Load reads it strictly and reports every problem with its path; Objects renders it to the
// same Kubernetes objects for every driver. It realises nothing: that is the drivers' work.
// Source: the project's design, section "Labs: one scenario, three worlds".
package topologies
