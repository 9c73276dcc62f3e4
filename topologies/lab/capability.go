// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"maps"
	"slices"
)

// Capability is something that a driver may or may not be able to do on this host.
type Capability string

// Capabilities that scenarios ask for.
const (
	CapIPv4     Capability = "ipv4"     // pods have IPv4 addresses
	CapIPv6     Capability = "ipv6"     // pods have IPv6 addresses
	CapCapture  Capability = "capture"  // packets can be recorded
	CapInspect  Capability = "inspect"  // rules, routes and sockets can be read
	CapSignal   Capability = "signal"   // daemons can be signalled, stopped and started
	CapLink     Capability = "link"     // links between nodes can be cut
	CapImpair   Capability = "impair"   // links can be slow, and lose packets
	CapExternal Capability = "external" // external hosts exist
	CapPodCaps  Capability = "podcaps"  // pods can be given NET_ADMIN and the like

	// CapKubelet: a real kubelet runs pods and Kubernetes' own controllers make them, so that there are probes, init containers,
	// Jobs, Deployments, node ports, taints, and volumes of the node.
	CapKubelet  Capability = "kubelet"
	CapMTU      Capability = "mtu"      // nodes and links have the MTUs, and packets the sizes, that the topology says
	CapNetworks Capability = "networks" // nodes can be on different networks
	CapPodIPs   Capability = "podips"   // pods get the addresses that AnnotationIPs names
	CapStopped  Capability = "stopped"  // a daemon that ended by itself, or was killed, is down until somebody starts it
	CapCAFiles  Capability = "cafiles"  // the authority's keys and roots are files in the control plane's pod, as `control ca` takes them
	CapTLSKeys  Capability = "tlskeys"  // daemons can log the secrets of their connections, as debug.tlsKeys asks
	CapProcess  Capability = "process"  // daemons are processes of this host, as Status.PID names them

	CapAPIServer Capability = "apiserver" // a process of its own serves the API, as DaemonAPIServer, and can be stopped and started

	CapNetworkPolicy Capability = "networkpolicy" // NetworkPolicy objects are enforced, by a CNI project or in its place
)

// Capabilities tells for each capability why it is missing; "" means that it is there. One that is not in the map is
// missing too.
type Capabilities map[Capability]string

// Has reports whether c is there.
func (cs Capabilities) Has(c Capability) bool {
	why, ok := cs[c]
	return ok && why == ""
}

// Missing gives the reason for each wanted capability that is not there, in the order asked; empty means all are.
func (cs Capabilities) Missing(want ...Capability) []string {
	var reasons []string
	for _, c := range want {
		why, ok := cs[c]
		switch {
		case !ok:
			reasons = append(reasons, string(c)+": this driver does not have it")
		case why != "":
			reasons = append(reasons, string(c)+": "+why)
		}
	}
	return reasons
}

// List names the capabilities that are there, sorted.
func (cs Capabilities) List() []Capability {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(cs)), func(c Capability) bool { return !cs.Has(c) })
}
