// SPDX-License-Identifier: Apache-2.0

// Package perf measures what the mesh costs: the same loads over plain TCP, over two relays that only copy, over two that
// copy and encrypt with the mesh's own TLS, and over two ztunnels, one after the other and again in turn, in one lab. It
// decides what is compared with what; the loads are package pod's, the repetition fortio's, the documents reports/schema's.
// Source: reference, "Consequences for our comparison".
package perf
