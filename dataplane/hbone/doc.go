// SPDX-License-Identifier: Apache-2.0

// Package hbone carries one TCP stream per HTTP/2 CONNECT request inside mutual TLS: a client Pool and a Server on
// framing of our own. It moves bytes between a tunnel's frames and an application's socket; it does not choose
// destinations (catalog), judge peers (authz), make certificates (identity) or know a mesh.
// Sources: RFC 9113; RFC 8446 §4.6, §5, §7; Istio architecture/ambient/ztunnel.md, "HBONE" (reference: protocols A1.3, A1.7, A1.8).
//
// One connection has one read loop, which hands every payload to the application's socket without ever waiting: what
// the kernel does not take is queued and drained by a goroutine that lives only as long as the queue. The other way,
// whoever reads the application's socket writes the frames. crypto/tls does the handshakes; the records after them are
// sealed and opened here, straight from one side's buffer into the other's, and written by one flusher at a time, several
// per system call.
package hbone
