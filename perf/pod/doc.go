// SPDX-License-Identifier: Apache-2.0

// Package pod is the part of a measurement that runs inside pods: a server, a relay (plain, or one end of bare TLS) and
// a load generator, each a process of its own that is driven by JSON lines on its standard input and answers on its
// standard output. It measures what it can see itself; what is compared with what is package perf's.
package pod
