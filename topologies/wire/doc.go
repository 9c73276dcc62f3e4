// SPDX-License-Identifier: Apache-2.0

// Package wire records packets in a network namespace and reads recordings as evidence: connections with their byte streams put
// together again, and what of TLS is to be seen from outside. Record is for the small command that a driver starts inside a
// namespace; Read, Flows and TLS are for scenarios. What a recording has to show is the scenarios' business.
// Sources: packet(7), the kernel's packet_mmap documentation, the pcapng draft, RFC 9293, RFC 8446 and RFC 8448.
package wire
