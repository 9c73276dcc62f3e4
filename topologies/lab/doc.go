// SPDX-License-Identifier: Apache-2.0

// Package lab is the seam between those who use a lab (scenarios, performance cases, the lab command) and the drivers
// that realise one: namespaces on this host, a kind cluster, any cluster. Driver and its companions say what a driver
// must do; Lab adds what every caller shares, such as making a call from a pod and tracing its hops.
// It starts nothing itself and enters no namespace.
// Source: the project's design, section "Labs: one scenario, three worlds".
package lab
