// SPDX-License-Identifier: Apache-2.0

// Package alone measures the memory of one ztunnel: the real binary, in network namespaces of its own, with a node agent
// and a control plane that serve it as many pods and workloads as are asked for. What the figures should be is package
// perf's.
package alone
