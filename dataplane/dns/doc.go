// SPDX-License-Identifier: Apache-2.0

// Package dns is the DNS proxy in a pod's namespace: it answers for the names that the mesh knows, and passes every other
// query on to where the application sent it.
//
// Answered here are address queries (A, AAAA) for services with a virtual address, for headless services of the cluster and
// for the pods behind those; under every name that the pod's search path makes of them, and by wildcards. A name that is
// known and has no address of the family asked for is an empty answer (NODATA), not a denial. Everything else is passed on:
// names that the mesh does not know, so that whoever is authoritative denies them (NXDOMAIN) or follows their alias (a
// Service of type ExternalName is not on the wire); other types, with a denial of a name that the mesh knows turned into an
// empty answer; other classes; and other operations than QUERY (UPDATE, NOTIFY), byte by byte (istio/istio#55962).
//
// It opens no socket and knows no redirection: both are given to it. Source: reference, "DNS proxy"; RFC 1035, 2308, 6891,
// 7766 and 8914.
package dns
