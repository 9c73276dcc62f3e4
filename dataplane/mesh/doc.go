// SPDX-License-Identifier: Apache-2.0

// Package mesh holds the nouns of an ambient mesh: identities, workloads, services, policies, well-known ports and
// packet marks. It is plain data with the few rules that belong to the data itself; everyone may import it, so it
// imports only the standard library. Choosing an endpoint is catalog's work, judging a connection authz's.
// Values are immutable once shared: whoever receives one through a snapshot must not write to it or to what it points to.
// Sources: Istio's workload.proto and authorization.proto (reference: WDS, L4 authorization).
package mesh
