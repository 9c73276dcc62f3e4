// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/dataplane/source/file"
)

func (d *decoder) spec(n *yaml.Node) *Spec {
	s := &Spec{}
	var apiVersion, kind string
	d.object(n, "", fields{
		"apiVersion":  d.string(&apiVersion),
		"kind":        d.string(&kind),
		"name":        d.string(&s.Name),
		"description": d.string(&s.Description),
		"clusters":    list(d, &s.Clusters, d.cluster),
		"external":    list(d, &s.External, d.external),
		"links":       list(d, &s.Links, d.link),
		"debug": func(n *yaml.Node, path string) {
			d.object(n, path, fields{"tlsKeys": d.bool(&s.Debug.TLSKeys)})
		},
	})
	d.constant(n, "apiVersion", apiVersion, APIVersion)
	d.constant(n, "kind", kind, Kind)
	return s
}

func (d *decoder) constant(root *yaml.Node, path, got, want string) {
	if got == want || d.broken(path) {
		return
	}
	at := &yaml.Node{Line: d.lineOf(path)}
	if root.Kind != yaml.MappingNode {
		return // "want a mapping" was said
	}
	if got == "" {
		d.add(at, path, "missing; want %q", want)
		return
	}
	d.add(at, path, "is %q, want %q", got, want)
}

func (d *decoder) cluster(n *yaml.Node, path string) (c Cluster) {
	d.object(n, path, fields{
		"name":           d.string(&c.Name),
		"network":        d.string(&c.Network),
		"trustDomain":    d.string(&c.TrustDomain),
		"domain":         d.string(&c.Domain),
		"ipFamily":       d.string((*string)(&c.IPFamily)),
		"podSubnets":     list(d, &c.PodSubnets, d.prefix),
		"serviceSubnets": list(d, &c.ServiceSubnets, d.prefix),
		"kubeProxyMode":  d.string((*string)(&c.KubeProxyMode)),
		"nodes":          list(d, &c.Nodes, d.node),
		"namespaces":     list(d, &c.Namespaces, d.namespace),
		"workloads":      list(d, &c.Workloads, d.workload),
		"services":       list(d, &c.Services, d.service),
		"objects":        d.objects(&c.Objects),
	})
	return c
}

func (d *decoder) node(n *yaml.Node, path string) (x Node) {
	d.object(n, path, fields{
		"name":   d.string(&x.Name),
		"zone":   d.string(&x.Zone),
		"region": d.string(&x.Region),
		"labels": d.stringMap(&x.Labels),

		"network":      d.string(&x.Network),
		"mtu":          d.int(&x.MTU, leastMTU, mostMTU),
		"plainPackets": d.bool(&x.PlainPackets),
	})
	return x
}

func (d *decoder) link(n *yaml.Node, path string) (l Link) {
	d.object(n, path, fields{"between": d.strings(&l.Between), "mtu": d.int(&l.MTU, leastMTU, mostMTU)})
	return l
}

func (d *decoder) namespace(n *yaml.Node, path string) (x Namespace) {
	d.object(n, path, fields{
		"name":        d.string(&x.Name),
		"labels":      d.stringMap(&x.Labels),
		"annotations": d.stringMap(&x.Annotations),
	})
	return x
}

func (d *decoder) workload(n *yaml.Node, path string) (w Workload) {
	var node string
	server, serveGiven := true, false
	w.Replicas = 1
	d.object(n, path, fields{
		"name":           d.string(&w.Name),
		"namespace":      d.string(&w.Namespace),
		"serviceAccount": d.string(&w.ServiceAccount),
		"labels":         d.stringMap(&w.Labels),
		"annotations":    d.stringMap(&w.Annotations),
		"node":           d.string(&node),
		"nodes":          d.strings(&w.Nodes),
		"replicas":       d.int(&w.Replicas, 1, 1000),
		"server":         d.bool(&server),
		"serve": func(n *yaml.Node, path string) {
			_, serveGiven = d.resolve(n, path)
			d.serve(&w.Serve)(n, path)
		},
		"capabilities": func(n *yaml.Node, path string) {
			d.object(n, path, fields{"add": d.strings(&w.Capabilities.Add), "drop": d.strings(&w.Capabilities.Drop)})
		},
		"env":     d.stringMap(&w.Env),
		"command": d.strings(&w.Command),
	})
	switch {
	case node != "" && len(w.Nodes) > 0:
		d.add(n, join(path, "node"), "give node or nodes, not both")
	case node != "":
		w.Nodes = []string{node}
	}
	switch {
	case serveGiven && (!server || len(w.Command) > 0):
		d.add(n, join(path, "serve"), "has no effect with server: false or a command")
	case server && !serveGiven && len(w.Command) == 0:
		w.Serve = DefaultServe()
	}
	return w
}

func (d *decoder) serve(s *Serve) read {
	return func(n *yaml.Node, path string) {
		d.object(n, path, fields{
			"http":           list(d, &s.HTTP, d.port),
			"h2c":            list(d, &s.H2C, d.port),
			"grpc":           list(d, &s.GRPC, d.port),
			"tls":            list(d, &s.TLS, d.port),
			"tcp":            list(d, &s.TCP, d.port),
			"tcpServerFirst": list(d, &s.TCPServerFirst, d.port),
			"udp":            list(d, &s.UDP, d.port),
		})
	}
}

func (d *decoder) service(n *yaml.Node, path string) (s Service) {
	d.object(n, path, fields{
		"name":        d.string(&s.Name),
		"namespace":   d.string(&s.Namespace),
		"labels":      d.stringMap(&s.Labels),
		"annotations": d.stringMap(&s.Annotations),
		"selector":    d.stringMap(&s.Selector),
		"ports":       list(d, &s.Ports, d.servicePort),
		"headless":    d.bool(&s.Headless),
		"clusterIPs":  list(d, &s.ClusterIPs, d.addr),
	})
	return s
}

func (d *decoder) servicePort(n *yaml.Node, path string) (p ServicePort) {
	d.object(n, path, fields{
		"name":        d.string(&p.Name),
		"port":        d.portNumber(&p.Port),
		"targetPort":  d.portNumber(&p.TargetPort),
		"protocol":    d.string(&p.Protocol),
		"appProtocol": d.string(&p.AppProtocol),
	})
	return p
}

func (d *decoder) external(n *yaml.Node, path string) (e External) {
	d.object(n, path, fields{
		"name":      d.string(&e.Name),
		"addresses": list(d, &e.Addresses, d.addr),
		"serve":     d.serve(&e.Serve),
		"mtu":       d.int(&e.MTU, leastMTU, mostMTU),
	})
	return e
}

func (d *decoder) objects(out *[]runtime.Object) read {
	return list(d, out, func(n *yaml.Node, path string) runtime.Object {
		n, ok := d.resolve(n, path)
		if !ok || n.Kind != yaml.MappingNode {
			d.add(n, path, "want a Kubernetes object, got %s", kindName(n))
			return nil
		}
		text, err := yaml.Marshal(n)
		if err != nil {
			d.add(n, path, "%v", err)
			return nil
		}
		obj, problems := file.Decode(text)
		for _, p := range problems {
			d.add(n, strings.TrimSuffix(path+"."+p.Field, "."), "%v", p.Err)
		}
		if len(problems) > 0 {
			return nil
		}
		return obj
	})
}
