// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Names is what the mesh knows: one immutable state of it.
type Names interface {
	// ServicesByHost are the services of that host name, which is in lower case and without a final dot, sorted by key.
	ServicesByHost(host string) []*mesh.Service
	// Endpoints are the members of the service key.
	Endpoints(key string) []*mesh.Workload
}

// Zone says how names are understood. It is set once.
type Zone struct {
	Domain    string // of the cluster, "cluster.local"
	Network   string // addresses of other networks are not answered
	Preferred string // a namespace whose services come next after those of the client's own; may be empty
	IPv6      bool   // whether IPv6 addresses are answered at all
}

// found is what a name stands for: a service, or a pod behind a headless one.
type found struct {
	service *mesh.Service
	pod     *mesh.Workload // nil: the service itself
	// alias is the length of the part of the name asked for that is the real name; 0 means all of it. What follows is a
	// search domain that the client's resolver has put there.
	alias int
}

// find looks a name up for a client in a namespace. name is in lower case and without a final dot.
func (z *Zone) find(n Names, namespace, name string) (found, bool) {
	if f, ok := z.expand(n, namespace, name); ok {
		return f, true
	}
	for _, search := range [...]string{namespace + ".svc." + z.Domain, "svc." + z.Domain, z.Domain} {
		stripped, ok := strings.CutSuffix(name, "."+search)
		if !ok || stripped == "" {
			continue
		}
		if f, wild, ok := z.expandStripped(n, namespace, stripped); ok {
			if !wild {
				f.alias = len(stripped)
			}
			return f, true
		}
	}
	return found{}, false
}

// expand tries a name as it is, and then every name in the cluster that it may be short for.
func (z *Zone) expand(n Names, namespace, name string) (found, bool) {
	f, _, ok := z.expandStripped(n, namespace, name)
	return f, ok
}

func (z *Zone) expandStripped(n Names, namespace, name string) (f found, wild, ok bool) {
	labels := strings.Count(name, ".") + 1
	if f, wild, ok = z.match(n, namespace, name); ok {
		return f, wild, true
	}
	if f, ok = z.pod(n, namespace, name); ok {
		return f, false, true
	}
	try := func(full string, pod bool) bool {
		if pod {
			f, ok = z.pod(n, namespace, full)
			return ok
		}
		f, wild, ok = z.match(n, namespace, full)
		return ok
	}
	ns, svc := "."+namespace+".svc."+z.Domain, ".svc."+z.Domain
	inSvc := strings.HasSuffix(name, ".svc")
	switch {
	case labels == 1:
		_ = try(name+ns, false)
	case labels == 2:
		_ = try(name+svc, false) || try(name+ns, true)
	case labels == 3:
		_ = inSvc && try(name+"."+z.Domain, false) || try(name+svc, true)
	case labels == 4 && inSvc:
		_ = try(name+"."+z.Domain, true)
	}
	return f, wild, ok
}

// match finds the service of a name or of the closest wildcard that covers it.
func (z *Zone) match(n Names, namespace, name string) (f found, wild, ok bool) {
	if s := z.best(n.ServicesByHost(name), namespace); s != nil {
		return found{service: s}, false, true
	}
	for rest := name; ; {
		dot := strings.IndexByte(rest, '.')
		if dot < 0 {
			return found{}, false, false
		}
		if s := z.best(n.ServicesByHost("*"+rest[dot:]), namespace); s != nil {
			return found{service: s}, true, true
		}
		rest = rest[dot+1:]
	}
}

// best chooses among services of one host: the client's own namespace's, the preferred one's, the canonical, the first.
// Services without an address are none of ours to answer for, unless they are the cluster's headless ones.
func (z *Zone) best(all []*mesh.Service, namespace string) *mesh.Service {
	var best *mesh.Service
	rank := 0
	for _, s := range all {
		if len(s.VIPs) == 0 && !z.inCluster(s.Hostname) {
			continue
		}
		r := 1
		switch {
		case s.Namespace == namespace:
			r = 4
		case s.NamespacePrivate:
			continue
		case s.Namespace == z.Preferred:
			r = 3
		case s.Canonical:
			r = 2
		}
		if r > rank {
			best, rank = s, r
		}
	}
	return best
}

func (z *Zone) inCluster(host string) bool {
	rest, ok := cutSuffixFold(host, z.Domain)
	return ok && strings.HasSuffix(strings.ToLower(rest), ".svc.")
}

func cutSuffixFold(s, suffix string) (string, bool) {
	if len(s) < len(suffix) || !strings.EqualFold(s[len(s)-len(suffix):], suffix) {
		return s, false
	}
	return s[:len(s)-len(suffix)], true
}

// pod finds a pod of a headless service, such as a StatefulSet's: <pod>.<service>.<namespace>.svc.<domain>. Its host name is
// not on the wire; a StatefulSet's is the pod's name. A pod that is not ready is left to the cluster's DNS to deny.
func (z *Zone) pod(n Names, namespace, name string) (found, bool) {
	pod, service, ok := strings.Cut(name, ".")
	if !ok || !z.inCluster(service) || strings.Count(service, ".") != 3+strings.Count(z.Domain, ".") {
		return found{}, false
	}
	s := z.best(n.ServicesByHost(service), namespace)
	if s == nil || len(s.VIPs) > 0 {
		return found{}, false
	}
	for _, w := range n.Endpoints(s.Key()) {
		if w.Name == pod && w.Namespace == s.Namespace && z.callable(s, w) {
			return found{service: s, pod: w}, true
		}
	}
	return found{}, false
}

func (z *Zone) callable(s *mesh.Service, w *mesh.Workload) bool {
	return w.Network == z.Network && (w.Status == mesh.Healthy || s.LoadBalancing.AllowUnhealthy)
}

// addresses appends what f has of one family, in random order: clients take the first.
func (z *Zone) addresses(n Names, f found, v6 bool, out []netip.Addr) []netip.Addr {
	if v6 && !z.IPv6 || v6 && f.service.Families == mesh.FamiliesIPv4 || !v6 && f.service.Families == mesh.FamiliesIPv6 {
		return out
	}
	switch {
	case f.pod != nil:
		out = appendFirst(out, f.pod, v6)
	case len(f.service.VIPs) > 0:
		for _, v := range f.service.VIPs {
			if v.Network == z.Network && v.Addr.Is6() == v6 {
				out = append(out, v.Addr)
			}
		}
	default:
		for _, w := range n.Endpoints(f.service.Key()) {
			if z.callable(f.service, w) {
				out = appendFirst(out, w, v6)
			}
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func appendFirst(out []netip.Addr, w *mesh.Workload, v6 bool) []netip.Addr {
	for _, a := range w.Addresses {
		if a.Is6() == v6 {
			return append(out, a)
		}
	}
	return out
}
