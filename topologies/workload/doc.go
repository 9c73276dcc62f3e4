// SPDX-License-Identifier: Apache-2.0

// Package workload is the application inside a lab's pods: an echo server that reports what it saw of each call, and a
// caller that reports what came of its calls as JSON. Both speak HTTP/1.1, HTTP/2, gRPC, TLS, WebSocket, TCP and UDP.
// Neither knows of the mesh: that is what makes them witnesses. Judging results is the scenarios' work.
// Source: the project's design, section "Labs"; Istio's echo test application gave the idea of reporting what was seen.
package workload
