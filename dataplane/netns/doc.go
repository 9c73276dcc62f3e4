// SPDX-License-Identifier: Apache-2.0

// Package netns opens, creates and enters network namespaces, and makes sockets that live in one while the caller stays
// outside: only socket() and its options run inside, on a locked thread that goes straight back; bind, connect, listen and
// accept then wait in Go's poller like any other connection. Multipath TCP is never on.
// Redirection (capture) and wiring (nodenet, the lab's driver) are left to others; so is finding a pod's namespace.
// Sources: setns(2), ioctl_ns(2), ip(7), tcp(7), SO_REUSEPORT and SO_ATTACH_REUSEPORT_CBPF in socket(7).
package netns
