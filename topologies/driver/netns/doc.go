// SPDX-License-Identifier: Apache-2.0

// Package netns realises a topology on this host, in namespaces: the outside half of the driver. It starts a holder
// (package hold, as PID 1 of the lab's own namespaces), and is from then on a client of the holder's socket. It enters no
// namespace itself, for a Go process cannot enter a user namespace; so it links nothing that would.
// Source: the project's design, section "Labs: one scenario, three worlds".
package netns
