// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func (v *validator) workloads(c *Cluster, at string, namespaces names) {
	pods := names{systemNamespace + "/" + controlPod: "the control plane"}
	nodes := map[string]bool{}
	for _, n := range c.Nodes {
		nodes[n.Name] = true
		pods[systemNamespace+"/"+ztunnelPod(n.Name)] = "node " + n.Name + "'s ztunnel"
	}
	for i := range c.Workloads {
		w, p := &c.Workloads[i], fmt.Sprintf("%s.workloads[%d]", at, i)
		v.label(p+".name", w.Name)
		v.namespaceRef(p+".namespace", at, w.Namespace, namespaces)
		if w.Name != "" {
			if w.ServiceAccount != w.Name && len(validation.IsDNS1123Subdomain(w.ServiceAccount)) > 0 {
				v.add(p+".serviceAccount", "%q is not a service account's name", w.ServiceAccount)
			}
			for r := range w.Replicas {
				v.unique(pods, p+".name", w.Namespace+"/"+w.PodName(r))
			}
		}
		v.labels(p+".labels", w.Labels)
		for j, n := range w.Nodes {
			if !nodes[n] {
				v.addDep(nodePath(p, w, j), at+".nodes", "no node %q; there are %s", n, nodeNames(c))
			}
		}
		v.serve(p+".serve", w.Serve)
		v.capabilities(p+".capabilities.add", w.Capabilities.Add)
		v.capabilities(p+".capabilities.drop", w.Capabilities.Drop)
		for _, k := range slices.Sorted(maps.Keys(w.Env)) {
			if msgs := validation.IsEnvVarName(k); len(msgs) > 0 {
				v.add(p+".env."+k, "%q is not a variable's name", k)
			}
		}
	}
}

// nodePath names the field as people write it: one node is mostly given as node.
func nodePath(at string, w *Workload, j int) string {
	if len(w.Nodes) == 1 {
		return at + ".node"
	}
	return fmt.Sprintf("%s.nodes[%d]", at, j)
}

func nodeNames(c *Cluster) string {
	l := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		l[i] = n.Name
	}
	return strings.Join(l, ", ")
}

func (v *validator) namespaceRef(path, at, name string, namespaces names) {
	if name == "" {
		v.add(path, "missing")
		return
	}
	if _, ok := namespaces[name]; !ok {
		v.addDep(path, at+".namespaces", "no namespace %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(namespaces)), ", "))
	}
}

// serve checks that no two listeners want the same port and that none is the proxy's.
func (v *validator) serve(at string, s Serve) {
	type key struct {
		udp bool
		num uint16
	}
	binds := map[key]map[Bind]string{}
	for _, l := range s.Listeners() {
		for i, p := range l.Ports {
			path := fmt.Sprintf("%s.%s[%d]", at, l.Field, i)
			if p.Number == 0 {
				continue // was reported when it was decoded
			}
			if !l.UDP && (mesh.IllegalPort(p.Number) || p.Number == mesh.PortDNS) {
				v.add(path, "port %d belongs to the proxy in every enrolled pod", p.Number)
			}
			k := key{l.UDP, p.Number}
			for b, other := range binds[k] {
				if b == p.Bind || b == BindAny || p.Bind == BindAny {
					v.add(path, "port %s is also %s", p, other)
				}
			}
			if binds[k] == nil {
				binds[k] = map[Bind]string{}
			}
			binds[k][p.Bind] = path
		}
	}
}

func (v *validator) capabilities(at string, list []string) {
	for i, c := range list {
		if c != "ALL" && !slices.Contains(capabilityNames, c) {
			v.add(fmt.Sprintf("%s[%d]", at, i), "no capability %q; want a name like NET_ADMIN, without CAP_", c)
		}
	}
}

var capabilityNames = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
	SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
	AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

func (v *validator) services(c *Cluster, at string, namespaces names) {
	taken := names{}
	for _, s := range c.baseServices() {
		if s.Namespace+"/"+s.Name != "default/kubernetes" {
			taken[s.Namespace+"/"+s.Name] = "every cluster's"
		}
	}
	vips := NewAllocator(c.ServiceSubnets)
	for i := range c.Services {
		s, p := &c.Services[i], fmt.Sprintf("%s.services[%d]", at, i)
		v.label(p+".name", s.Name)
		v.namespaceRef(p+".namespace", at, s.Namespace, namespaces)
		if s.Name != "" {
			v.unique(taken, p+".name", s.Namespace+"/"+s.Name)
		}
		v.labels(p+".labels", s.Labels)
		v.labels(p+".selector", s.Selector)
		v.servicePorts(p, s)
		if s.Headless && len(s.ClusterIPs) > 0 {
			v.add(p+".clusterIPs", "a headless service has none")
			continue
		}
		v.clusterIPs(p, at, c, s, vips)
	}
}

func (v *validator) clusterIPs(p, at string, c *Cluster, s *Service, vips *Allocator) {
	families := map[bool]bool{}
	for j, ip := range s.ClusterIPs {
		path := fmt.Sprintf("%s.clusterIPs[%d]", p, j)
		switch {
		case !ip.IsValid(): // was reported when it was decoded
		case families[ip.Is6()]:
			v.add(path, "%s is a second address of its family", ip)
		case !inSubnets(c.ServiceSubnets, ip):
			v.addDep(path, at+".serviceSubnets", "%s is in none of the service subnets", ip)
		case !vips.Reserve(ip) || c.reservedVIP(s, ip):
			v.add(path, "%s is taken", ip)
		}
		families[ip.Is6()] = true
	}
}

func inSubnets(subnets []netip.Prefix, ip netip.Addr) bool {
	return slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(ip) })
}

func (v *validator) servicePorts(at string, s *Service) {
	if len(s.Ports) == 0 && !s.Headless {
		v.add(at+".ports", "missing; want at least one")
	}
	byName, byPort := names{}, names{}
	for i, p := range s.Ports {
		path := fmt.Sprintf("%s.ports[%d]", at, i)
		if p.Protocol != "TCP" && p.Protocol != "UDP" {
			v.add(path+".protocol", "is %q, want TCP or UDP", p.Protocol)
		}
		if p.Port == 0 {
			v.add(path+".port", "missing")
		} else {
			v.unique(byPort, path+".port", fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
		switch {
		case p.Name == "" && len(s.Ports) > 1:
			v.add(path+".name", "missing; a service of several ports names each")
		case p.Name != "":
			v.label(path+".name", p.Name)
			v.unique(byName, path+".name", p.Name)
		}
	}
}

func (v *validator) objects(c *Cluster, at string, namespaces names) {
	for i, o := range c.Objects {
		if o == nil {
			continue // was reported when it was decoded
		}
		path := fmt.Sprintf("%s.objects[%d]", at, i)
		m, err := meta.Accessor(o)
		if err != nil {
			v.add(path, "%v", err)
			continue
		}
		if m.GetName() == "" {
			v.add(path+".metadata.name", "missing")
		}
		switch o.(type) {
		case *corev1.Namespace:
			v.add(path, "a namespace belongs under namespaces")
		case *corev1.Node:
			v.add(path, "a node belongs under nodes")
		default:
			v.namespaceRef(path+".metadata.namespace", at, m.GetNamespace(), namespaces)
		}
	}
}
