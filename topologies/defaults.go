// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"fmt"
	"net/netip"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// DefaultServe is what the workload binary serves if a topology does not say: every protocol, and HTTP on one port
// that only localhost reaches and one that localhost does not.
func DefaultServe() Serve {
	at := func(n uint16, b Bind) []Port { return []Port{{Number: n, Bind: b}} }
	return Serve{
		HTTP:           []Port{{8080, BindAny}, {8090, BindLocalhost}, {8091, BindPod}},
		H2C:            at(8081, BindAny),
		GRPC:           at(8082, BindAny),
		TLS:            at(8443, BindAny),
		TCP:            at(9000, BindAny),
		TCPServerFirst: at(9001, BindAny),
		UDP:            at(9002, BindAny),
	}
}

// DefaultMTU is Ethernet's; less than leastMTU IPv6 does not work with (RFC 8200 §5), and more than mostMTU no link has.
const (
	DefaultMTU = 1500
	leastMTU   = 1280
	mostMTU    = 65535
)

func (s *Spec) setDefaults() {
	for i := range s.External {
		setIfZero(&s.External[i].MTU, DefaultMTU)
	}
	for i := range s.Clusters {
		s.Clusters[i].setDefaults(i)
	}
}

func (c *Cluster) setDefaults(index int) {
	setIfZero(&c.Name, "Kubernetes")
	setIfZero(&c.TrustDomain, mesh.DefaultTrustDomain)
	setIfZero(&c.Domain, "cluster.local")
	setIfZero(&c.IPFamily, Dual)
	if len(c.PodSubnets) == 0 {
		c.PodSubnets = defaultSubnets(c.IPFamily, 244, 16, 56, index)
	}
	if len(c.ServiceSubnets) == 0 {
		c.ServiceSubnets = defaultSubnets(c.IPFamily, 96, 16, 112, index)
	}
	for i := range c.Nodes {
		setIfZero(&c.Nodes[i].Network, c.Network)
		setIfZero(&c.Nodes[i].MTU, DefaultMTU)
	}
	for i := range c.Workloads {
		c.Workloads[i].setDefaults(c.Nodes, i)
	}
	for i := range c.Services {
		for j := range c.Services[i].Ports {
			p := &c.Services[i].Ports[j]
			setIfZero(&p.TargetPort, p.Port)
			setIfZero(&p.Protocol, "TCP")
		}
	}
}

func (w *Workload) setDefaults(nodes []Node, index int) {
	setIfZero(&w.ServiceAccount, w.Name)
	labels := map[string]string{"app": w.Name, "version": "v1"}
	for k, v := range w.Labels {
		labels[k] = v
	}
	w.Labels = labels
	if len(w.Nodes) == 0 {
		for i := range nodes {
			w.Nodes = append(w.Nodes, nodes[(index+i)%len(nodes)].Name)
		}
	}
}

// defaultSubnets gives each cluster of a topology ranges of its own.
func defaultSubnets(f IPFamily, second, bits4, bits6, index int) []netip.Prefix {
	var subnets []netip.Prefix
	if index >= maxClusters {
		return nil // validation says so
	}
	if f.Has4() {
		subnets = append(subnets, netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/%d", second+index, bits4)))
	}
	if f.Has6() {
		subnets = append(subnets, netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/%d", second+index, bits6)))
	}
	return subnets
}

func setIfZero[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
