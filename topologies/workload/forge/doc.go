// SPDX-License-Identifier: Apache-2.0

// Package forge sends what no honest program sends, one piece at a time, and says what came back: a CONNECT made by hand
// with any authority, method and header, inside mutual TLS with the sender's own certificate; and a TCP SYN that leaves
// past the kernel's rules. It judges nothing: that is the scenarios' work. Floods are package attack's.
// Sources: RFC 9113; packet(7), raw(7); reference, "The CONNECT exchange".
package forge
