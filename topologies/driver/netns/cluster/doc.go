// SPDX-License-Identifier: Apache-2.0

// Package cluster plays what a cluster has besides a mesh, as far as that needs no namespace: the token issuer, the
// endpoint slice controller, the addresses of services, what kube-proxy would balance, and the cluster's DNS. All but
// the DNS server are functions of objects; the server works on sockets that it is given.
// Sources: Kubernetes service-account tokens; discovery/v1; the DNS specification for Kubernetes, version 1.1.0.
package cluster
