// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	istiov1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// serviceEntry makes one service per host; they share everything but their name and allocated addresses.
func (c *compiler) serviceEntry(e *istiov1.ServiceEntry) []*binding {
	private, published := c.visibility(e)
	if !published {
		return nil
	}
	var lb mesh.LoadBalancing
	if e.Spec.Resolution == networking.ServiceEntry_NONE {
		lb = mesh.LoadBalancing{Mode: mesh.BalancePassthrough, AllowUnhealthy: true}
	} else {
		lb = c.distribution("", e)
	}
	vips, cidrs := c.entryAddresses(e)
	out := make([]*binding, 0, len(e.Spec.Hosts))
	for _, host := range e.Spec.Hosts {
		host = strings.ToLower(host)
		svc := &mesh.Service{
			Name: e.Name, Namespace: e.Namespace, Hostname: host, VIPs: vips, CIDRs: cidrs,
			SubjectAltNames: e.Spec.SubjectAltNames, LoadBalancing: lb, NamespacePrivate: private,
		}
		if allocates(e) {
			svc.VIPs = c.allocated(e, host)
		}
		b := &binding{service: svc, key: svc.Key(), selector: e.Spec.WorkloadSelector.GetLabels(), entry: true}
		for _, p := range e.Spec.Ports {
			if p.GetProtocol() == "UDP" {
				continue
			}
			port := bindingPort{service: uint16(p.GetNumber()), target: uint16(cmp.Or(p.GetTargetPort(), p.GetNumber())), name: p.GetName()}
			b.ports = append(b.ports, port)
			svc.Ports = append(svc.Ports, mesh.PortMap{ServicePort: port.service, TargetPort: port.target, AppProtocol: appProtocol(p.GetProtocol())})
		}
		b.sortPorts()
		out = append(out, b)
	}
	return out
}

// visibility reads exportTo. WDS knows "everyone" and "its own namespace" only.
func (c *compiler) visibility(e *istiov1.ServiceEntry) (private, published bool) {
	to := e.Spec.ExportTo
	switch {
	case len(to) == 0 || slices.Contains(to, "*"):
		return false, true
	case slices.Contains(to, "~"):
		return false, false
	}
	for _, ns := range to {
		if ns != "." && ns != e.Namespace {
			c.problem("ServiceEntry", e, "spec.exportTo", "the mesh cannot hide a service from some namespaces only: it is visible to all")
			return false, true
		}
	}
	return true, true
}

func (c *compiler) entryAddresses(e *istiov1.ServiceEntry) (vips []mesh.NetworkAddress, cidrs []mesh.NetworkPrefix) {
	for _, s := range e.Spec.Addresses {
		if a, ok := c.address(s); ok {
			vips = append(vips, a)
			continue
		}
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil: // source has refused it
		case p.IsSingleIP():
			vips = append(vips, mesh.NetworkAddress{Network: c.Network, Addr: p.Addr().Unmap()})
		default:
			cidrs = append(cidrs, mesh.NetworkPrefix{Network: c.Network, Prefix: p.Masked()})
		}
	}
	return vips, cidrs
}

func (c *compiler) workloadEntries() {
	for id, e := range c.objects.WorkloadEntries {
		labels := maps.Clone(e.Spec.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		for k, v := range e.Labels {
			if _, ok := labels[k]; !ok {
				labels[k] = v
			}
		}
		w := c.entryWorkload(c.ClusterID+"/networking.istio.io/WorkloadEntry/"+id, &e.Spec, labels)
		w.Name, w.Namespace = e.Name, e.Namespace
		w.AuthorizationPolicies = c.guards.of(e.Namespace, labels)
		w.WorkloadName = e.Name
		w.CanonicalName, w.CanonicalRevision = canonical(labels, e.Name)
		setTunnel(w, e)
		if e.Spec.Labels[mesh.LabelTunnel] == "http" {
			w.Tunnel, w.NativeTunnel = mesh.TunnelHBONE, true
		}
		for _, b := range c.selecting.of(e.Namespace, labels) {
			w.Services = append(w.Services, b.member(entryPort(&e.Spec), true))
		}
		c.add("WorkloadEntry", e, w)
	}
}

// inlinedEndpoints makes workloads of what ServiceEntries list themselves; one that resolves by DNS and lists nothing
// has its own hosts as endpoints.
func (c *compiler) inlinedEndpoints() {
	for id, e := range sorted(c.objects.ServiceEntries) {
		services := c.entries[id]
		if len(services) == 0 {
			continue
		}
		if len(e.Spec.Endpoints) > 0 {
			for _, ep := range e.Spec.Endpoints {
				c.inlined(e, ep, services)
			}
			continue
		}
		switch e.Spec.Resolution {
		case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
			if e.Spec.WorkloadSelector != nil {
				continue
			}
			for _, b := range services {
				if !strings.HasPrefix(b.service.Hostname, "*") { // nothing that a resolver could be asked for
					c.inlined(e, &networking.WorkloadEntry{Address: b.service.Hostname}, []*binding{b})
				}
			}
		}
	}
}

func (c *compiler) inlined(e *istiov1.ServiceEntry, ep *networking.WorkloadEntry, services []*binding) {
	uid := c.ClusterID + "/networking.istio.io/ServiceEntry/" + e.Namespace + "/" + e.Name + "/" + ep.GetAddress()
	for i := 2; c.uids[uid]; i++ { // one address may serve on several ports
		uid = c.ClusterID + "/networking.istio.io/ServiceEntry/" + e.Namespace + "/" + e.Name + "/" + ep.GetAddress() + "/" + strconv.Itoa(i)
	}
	w := c.entryWorkload(uid, ep, ep.GetLabels())
	w.Name, w.Namespace = e.Name, e.Namespace
	w.AuthorizationPolicies = c.guards.of(e.Namespace, ep.GetLabels())
	w.WorkloadName = e.Name
	w.CanonicalName, w.CanonicalRevision = canonical(e.Labels, e.Name)
	setTunnel(w, e)
	for _, b := range services {
		w.Services = append(w.Services, b.member(entryPort(ep), true))
	}
	c.add("ServiceEntry", e, w)
}

func (c *compiler) entryWorkload(uid string, e *networking.WorkloadEntry, labels map[string]string) *mesh.Workload {
	w := &mesh.Workload{
		UID: uid, Network: e.GetNetwork(), ServiceAccount: e.GetServiceAccount(), Type: mesh.Pod,
		Locality: splitLocality(cmp.Or(e.GetLocality(), labels["istio-locality"])), Capacity: cmp.Or(e.GetWeight(), 1),
	}
	if a, err := netip.ParseAddr(e.GetAddress()); err == nil {
		w.Addresses = []netip.Addr{a.Unmap()}
	} else {
		w.Hostname = e.GetAddress()
	}
	return w
}

// entryPort looks ports up by name among those that an entry lists.
func entryPort(e *networking.WorkloadEntry) func(string) (uint16, bool) {
	return func(name string) (uint16, bool) {
		p, ok := e.GetPorts()[name]
		return uint16(p), ok
	}
}

// splitLocality reads "region/zone/subzone".
func splitLocality(s string) mesh.Locality {
	parts := append(strings.SplitN(s, "/", 3), "", "", "")
	return mesh.Locality{Region: parts[0], Zone: parts[1], Subzone: parts[2]}
}
