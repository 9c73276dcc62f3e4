// SPDX-License-Identifier: Apache-2.0

// Package nft is what nodenet's tables have in common: changes of nftables that happen as one, and work within a namespace.
// What a table holds is its owner's.
// Sources: nfnetlink batches as libmnl sends them; namespaces(7).
package nft
