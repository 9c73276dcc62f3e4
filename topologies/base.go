// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Names that upstream's components expect.
const (
	systemNamespace = "istio-system"
	controlPod      = "istiod"
	controlAccount  = "istiod"
	ztunnelAccount  = "ztunnel" // the CA trusts this account to impersonate its node's pods
)

// LabelProvidedBy marks objects that a real cluster has by itself ("cluster"): a driver for one does not apply them.
const LabelProvidedBy = "ambientlab.dev/provided-by"

var baseNamespaces = []string{"default", systemNamespace, "kube-system"}

func ztunnelPod(node string) string { return "ztunnel-" + node }

func byCluster() map[string]string { return map[string]string{LabelProvidedBy: "cluster"} }

// baseServices are the services of every cluster, without addresses.
func (c *Cluster) baseServices() []*corev1.Service {
	dns := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns", Labels: byCluster()},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{
			{Name: "dns", Port: 53, TargetPort: intstr.FromInt32(53), Protocol: corev1.ProtocolUDP},
			{Name: "dns-tcp", Port: 53, TargetPort: intstr.FromInt32(53), Protocol: corev1.ProtocolTCP},
		}},
	}
	control := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: controlPod},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": controlPod},
			Ports: []corev1.ServicePort{{
				Name: "https-dns", Port: int32(mesh.PortXDS), TargetPort: intstr.FromInt32(int32(mesh.PortXDS)), Protocol: corev1.ProtocolTCP,
			}},
		},
	}
	services := []*corev1.Service{dns, control}
	if !slices.ContainsFunc(c.Services, func(s Service) bool { return s.Namespace == "default" && s.Name == "kubernetes" }) {
		services = append(services, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: byCluster()},
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{
				Name: "https", Port: 443, TargetPort: intstr.FromInt32(6443), Protocol: corev1.ProtocolTCP,
			}}},
		})
	}
	return services
}

// wellKnownVIPs are the addresses that a service has in every cluster; nil if it has none.
func (c *Cluster) wellKnownVIPs(namespace, name string) []netip.Addr {
	var n uint64
	switch namespace + "/" + name {
	case "default/kubernetes":
		n = offsetKubernetes
	case "kube-system/kube-dns":
		n = offsetDNS
	default:
		return nil
	}
	ips := make([]netip.Addr, len(c.ServiceSubnets))
	for i, s := range c.ServiceSubnets {
		ips[i] = offset(s, n)
	}
	return ips
}

// DNSAddrs are the addresses of the cluster's DNS service, one per family.
func (c *Cluster) DNSAddrs() []netip.Addr { return c.wellKnownVIPs("kube-system", "kube-dns") }

// reservedVIP reports whether ip is another service's by convention.
func (c *Cluster) reservedVIP(s *Service, ip netip.Addr) bool {
	for _, o := range [][2]string{{"default", "kubernetes"}, {"kube-system", "kube-dns"}} {
		if (o[0] != s.Namespace || o[1] != s.Name) && slices.Contains(c.wellKnownVIPs(o[0], o[1]), ip) {
			return true
		}
	}
	return false
}

// basePods are the mesh's own pods: the control plane on the first node and a ztunnel on every node. Drivers know what
// runs in them.
func (c *Cluster) basePods() []*corev1.Pod {
	pods := []*corev1.Pod{basePod(controlPod, controlPod, controlAccount, c.Nodes[0].Name, nil)}
	for _, n := range c.Nodes {
		p := basePod(ztunnelPod(n.Name), "ztunnel", ztunnelAccount, n.Name, []corev1.Capability{"NET_ADMIN", "SYS_ADMIN", "NET_RAW"})
		p.Labels[mesh.LabelTunnel] = "http" // it speaks HBONE for itself, so that its metrics can be scraped through a tunnel
		pods = append(pods, p)
	}
	return pods
}

func basePod(name, app, account, node string, caps []corev1.Capability) *corev1.Pod {
	ctr := corev1.Container{Name: app, Image: "ambientlab/" + app}
	if len(caps) > 0 {
		ctr.SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: caps}}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: systemNamespace, Name: name,
			Labels: map[string]string{"app": app, mesh.LabelDataplaneMode: mesh.ModeNone},
		},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: account, Containers: []corev1.Container{ctr}},
	}
}
