// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// endpointSlices takes endpoints from slices for services that select nothing; for all others pods say more.
func (c *compiler) endpointSlices() {
	for _, s := range sorted(c.objects.EndpointSlices) {
		name := s.Labels[discoveryv1.LabelServiceName]
		if name == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		b := c.byKey[s.Namespace+"/"+c.hostname(name, s.Namespace)]
		if b == nil || b.entry || len(b.selector) > 0 {
			continue
		}
		m := sliceMembership(s, b)
		for _, e := range s.Endpoints {
			c.sliceEndpoint(s, e, m)
		}
	}
}

func (c *compiler) sliceEndpoint(s *discoveryv1.EndpointSlice, e discoveryv1.Endpoint, m mesh.Membership) {
	if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" {
		id := cmp.Or(ref.Namespace, s.Namespace) + "/" + ref.Name
		w := c.podOf[id]
		if w == nil || ref.UID != "" && ref.UID != c.objects.Pods[id].UID {
			return
		}
		// The slices of both families name the same pod.
		if !slices.ContainsFunc(w.Services, func(have mesh.Membership) bool { return have.Key == m.Key }) {
			w.Services = append(w.Services, m)
		}
		return
	}
	w := &mesh.Workload{
		Name: s.Name, Namespace: s.Namespace, Services: []mesh.Membership{m}, Type: mesh.Pod, WorkloadName: s.Name, Capacity: 1,
		// Whose address it is nobody says, so it is an endpoint, but not what is found at that address.
		NetworkMode: mesh.NetworkHost,
	}
	w.CanonicalName, w.CanonicalRevision = canonical(nil, s.Name)
	for _, a := range e.Addresses {
		if addr, err := netip.ParseAddr(a); err == nil {
			w.Addresses = append(w.Addresses, addr.Unmap())
		}
	}
	if len(w.Addresses) == 0 {
		return
	}
	w.UID = c.ClusterID + "/discovery.k8s.io/EndpointSlice/" + s.Namespace + "/" + s.Name + "/" + e.Addresses[0]
	if e.Conditions.Ready != nil && !*e.Conditions.Ready {
		w.Status = mesh.Unhealthy
	}
	if e.NodeName != nil {
		w.Node = *e.NodeName
		w.Locality = locality(c.objects.Nodes[w.Node])
	}
	c.add("EndpointSlice", s, w)
}

// sliceMembership joins the slice's ports to the service's by their names.
func sliceMembership(s *discoveryv1.EndpointSlice, b *binding) mesh.Membership {
	m := mesh.Membership{Key: b.key}
	for _, p := range b.ports {
		for _, sp := range s.Ports {
			if sp.Port == nil || sp.Protocol != nil && *sp.Protocol != corev1.ProtocolTCP {
				continue
			}
			if name := sp.Name; name == nil && p.name == "" || name != nil && *name == p.name {
				m.Ports = append(m.Ports, mesh.PortMap{ServicePort: p.service, TargetPort: uint16(*sp.Port)})
				break
			}
		}
	}
	return m
}
