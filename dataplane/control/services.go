// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// annotationDistribution is the older form of spec.trafficDistribution, on a Service, a ServiceEntry or a Namespace.
const annotationDistribution = "networking.istio.io/traffic-distribution"

// candidate is a service before it is known which of several of the same hostname wins.
type candidate struct {
	*binding
	object  source.Object
	kind    string
	created time.Time
}

// services compiles Services and ServiceEntries, settles clashes of hostnames and files the winners.
func (c *compiler) services() {
	byHost := map[string][]candidate{}
	for _, s := range sorted(c.objects.Services) {
		if s.Spec.Type != corev1.ServiceTypeExternalName { // an alias in DNS, nothing that could be called
			b := c.service(s)
			byHost[b.service.Hostname] = append(byHost[b.service.Hostname], candidate{b, s, "Service", s.CreationTimestamp.Time})
		}
	}
	for _, e := range sorted(c.objects.ServiceEntries) {
		for _, b := range c.serviceEntry(e) {
			byHost[b.service.Hostname] = append(byHost[b.service.Hostname], candidate{b, e, "ServiceEntry", e.CreationTimestamp.Time})
		}
	}
	c.byKey, c.entries = map[string]*binding{}, map[string][]*binding{}
	for _, same := range sorted(byHost) {
		c.settle(same)
	}
	all := slices.SortedFunc(maps.Values(c.byKey), func(a, b *binding) int { return cmp.Compare(a.key, b.key) })
	for _, b := range all {
		c.out.Services = append(c.out.Services, b.service)
	}
	c.selecting = newSelectors(all)
}

// settle chooses among services of one hostname: one per namespace, and one that stands for the hostname wherever the
// client's own namespace has none. A Service wins over ServiceEntries, then the oldest.
func (c *compiler) settle(same []candidate) {
	slices.SortStableFunc(same, func(a, b candidate) int {
		if a.entry != b.entry {
			if b.entry {
				return -1
			}
			return 1
		}
		return a.created.Compare(b.created)
	})
	canonical := false
	for _, cand := range same {
		if winner := c.byKey[cand.key]; winner != nil {
			c.problem(cand.kind, cand.object, "spec.hosts", "%s of an older object, or of a Service, has precedence", cand.service.Hostname)
			continue
		}
		c.byKey[cand.key] = cand.binding
		if cand.entry {
			id := cand.object.GetNamespace() + "/" + cand.object.GetName()
			c.entries[id] = append(c.entries[id], cand.binding)
		}
		if !canonical && !cand.service.NamespacePrivate {
			canonical = true
			cand.service.Canonical = true
		}
	}
}

func (c *compiler) hostname(name, namespace string) string {
	return name + "." + namespace + ".svc." + c.Domain
}

func (c *compiler) service(s *corev1.Service) *binding {
	svc := &mesh.Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: c.hostname(s.Name, s.Namespace),
		Families:      families(s.Spec.IPFamilies),
		LoadBalancing: c.loadBalancing(s),
	}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP}
	}
	for _, ip := range ips {
		a, ok := c.address(ip)
		if !ok {
			continue // "None" and "" are no addresses
		}
		for _, n := range c.networks { // every node of the cluster serves it, whatever network it is in
			svc.VIPs = append(svc.VIPs, mesh.NetworkAddress{Network: n, Addr: a.Addr})
		}
	}
	b := &binding{service: svc, key: svc.Key(), selector: s.Spec.Selector}
	for _, p := range s.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			continue // the mesh carries TCP
		}
		port := bindingPort{service: uint16(p.Port), target: uint16(p.TargetPort.IntVal), name: p.Name, targetName: p.TargetPort.StrVal}
		if port.target == 0 && port.targetName == "" {
			port.target = port.service
		}
		b.ports = append(b.ports, port)
		svc.Ports = append(svc.Ports, mesh.PortMap{ServicePort: port.service, TargetPort: port.target, AppProtocol: kubeProtocol(p)})
	}
	b.sortPorts()
	return b
}

func (b *binding) sortPorts() {
	slices.SortStableFunc(b.ports, func(x, y bindingPort) int { return cmp.Compare(x.service, y.service) })
	slices.SortStableFunc(b.service.Ports, func(x, y mesh.PortMap) int { return cmp.Compare(x.ServicePort, y.ServicePort) })
}

func families(f []corev1.IPFamily) mesh.IPFamilies {
	switch {
	case len(f) == 2:
		return mesh.FamiliesDual
	case len(f) == 1 && f[0] == corev1.IPv4Protocol:
		return mesh.FamiliesIPv4
	case len(f) == 1:
		return mesh.FamiliesIPv6
	default:
		return mesh.FamiliesAutomatic
	}
}

func (c *compiler) loadBalancing(s *corev1.Service) mesh.LoadBalancing {
	var lb mesh.LoadBalancing
	if p := s.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		lb = mesh.LoadBalancing{Mode: mesh.BalanceStrict, Scopes: []mesh.Scope{mesh.ScopeNode}}
	} else {
		var spec string
		if s.Spec.TrafficDistribution != nil {
			spec = *s.Spec.TrafficDistribution
		}
		lb = c.distribution(spec, s)
	}
	lb.AllowUnhealthy = s.Spec.PublishNotReadyAddresses
	return lb
}

// distribution reads a preference for near endpoints from the spec, else the object, else its namespace.
func (c *compiler) distribution(spec string, o source.Object) mesh.LoadBalancing {
	v := cmp.Or(spec, o.GetAnnotations()[annotationDistribution])
	if ns := c.objects.Namespaces[o.GetNamespace()]; v == "" && ns != nil {
		v = ns.Annotations[annotationDistribution]
	}
	zone := []mesh.Scope{mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone}
	switch strings.ToLower(v) {
	case "preferclose", "prefersamezone":
		return mesh.LoadBalancing{Mode: mesh.BalanceFailover, Scopes: zone}
	case "prefersamenode":
		return mesh.LoadBalancing{Mode: mesh.BalanceFailover, Scopes: append(zone, mesh.ScopeSubzone, mesh.ScopeNode)}
	default:
		return mesh.LoadBalancing{}
	}
}

// kubeProtocol follows appProtocol, else the part of the port's name before the first hyphen.
func kubeProtocol(p corev1.ServicePort) mesh.AppProtocol {
	if p.AppProtocol != nil {
		return appProtocol(*p.AppProtocol)
	}
	name := p.Name
	if !strings.HasPrefix(name, "grpc-web") {
		name, _, _ = strings.Cut(name, "-")
	}
	return appProtocol(name)
}

func appProtocol(s string) mesh.AppProtocol {
	switch strings.ToLower(s) {
	case "http", "kubernetes.io/ws":
		return mesh.ProtocolHTTP11
	case "http2", "kubernetes.io/h2c":
		return mesh.ProtocolHTTP2
	case "grpc", "grpc-web":
		return mesh.ProtocolGRPC
	case "https", "tls", "kubernetes.io/wss":
		return mesh.ProtocolTLS
	case "tcp", "mongo", "mysql", "redis":
		return mesh.ProtocolTCP
	default:
		return mesh.ProtocolUnknown
	}
}
