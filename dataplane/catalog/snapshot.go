// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/authz"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Snapshot is one immutable state of the mesh. What its methods return must not be written to.
type Snapshot struct {
	changed chan struct{} // closed when a newer snapshot exists

	workloads table[*mesh.Workload] // by uid
	names     table[*mesh.Workload] // by namespace and name
	addrs     table[*mesh.Workload] // by network and each address; several per key, best first
	services  table[*mesh.Service]  // by key
	hosts     table[*hostSet]       // by host name
	vips      table[*vipSet]        // by network and address
	cidrs     table[*vipSet]        // by network and prefix
	lengths   *prefixLengths        // which prefix lengths cidrs holds; nil: none
	endpoints table[*endpointSet]   // by service key
	policies  table[*mesh.Policy]   // by key
	scopes    table[*policyScope]   // by namespace: its own policies
	global    *authz.Index
	policyGen uint64 // changes with any policy
}

// vipSet is the services that share one VIP or one range, sorted by key.
type vipSet struct {
	network  string
	prefix   netip.Prefix // of full length for a VIP
	services []*mesh.Service
}

// endpointSet is the workloads that are members of the service key, sorted by uid.
type endpointSet struct {
	key     string
	members []*mesh.Workload
	max     uint32 // no member has more capacity
	epoch   uint64
}

// policyScope is the policies of scope namespace of namespace ns.
type policyScope struct {
	ns    string
	index *authz.Index
}

// prefixLengths counts the prefixes of each length, so that a look-up probes only lengths that exist.
type prefixLengths struct{ v4, v6 [129]uint32 }

func (p *prefixLengths) of(a netip.Addr) *[129]uint32 {
	if a.Is4() {
		return &p.v4
	}
	return &p.v6
}

// WorkloadByUID finds a workload by its uid; nil if there is none.
func (s *Snapshot) WorkloadByUID(uid string) *mesh.Workload {
	w, _ := s.workloads.get(hashString(uid), func(w *mesh.Workload) bool { return w.UID == uid })
	return w
}

// WorkloadByAddr finds the workload that owns an address; nil if there is none. See the package comment for
// addresses with several owners.
func (s *Snapshot) WorkloadByAddr(network string, a netip.Addr) *mesh.Workload {
	a = a.Unmap()
	w, _ := s.addrs.get(hashAddr(network, a), func(w *mesh.Workload) bool { return owns(w, network, a) })
	return w
}

func owns(w *mesh.Workload, network string, a netip.Addr) bool {
	return w.Network == network && slices.Contains(w.Addresses, a)
}

// WorkloadByName finds a workload by what the node agent knows of a pod; nil if there is none.
// An empty service account means the default one.
func (s *Snapshot) WorkloadByName(namespace, name, serviceAccount string) *mesh.Workload {
	if serviceAccount == "" {
		serviceAccount = mesh.DefaultServiceAccount
	}
	w, _ := s.names.get(hashPair(namespace, name), func(w *mesh.Workload) bool {
		return w.Namespace == namespace && w.Name == name && w.Identity().ServiceAccount == serviceAccount
	})
	return w
}

// Service finds a service by its key, "namespace/hostname"; nil if there is none.
func (s *Snapshot) Service(key string) *mesh.Service {
	ns, host, _ := strings.Cut(key, "/")
	v, _ := s.services.get(hashPair(ns, host), func(v *mesh.Service) bool { return v.Namespace == ns && v.Hostname == host })
	return v
}

// Endpoints are the workloads that are members of the service key, sorted by uid. The service itself need not be known.
func (s *Snapshot) Endpoints(key string) []*mesh.Workload {
	if e := s.endpointSet(key); e != nil {
		return e.members
	}
	return nil
}

func (s *Snapshot) endpointSet(key string) *endpointSet {
	e, _ := s.endpoints.get(hashKey(key), func(e *endpointSet) bool { return e.key == key })
	return e
}

// endpointsOf is endpointSet(v.Key()), without making the key.
func (s *Snapshot) endpointsOf(v *mesh.Service) *endpointSet {
	e, _ := s.endpoints.get(hashPair(v.Namespace, v.Hostname), func(e *endpointSet) bool {
		ns, host, _ := strings.Cut(e.key, "/")
		return ns == v.Namespace && host == v.Hostname
	})
	return e
}

// ServiceOfHost finds the service called host that w is a member of; nil if it is a member of none. Only such a name
// may be believed when a peer sends it. Of several namespaces w's own comes first, then the first by name.
func (s *Snapshot) ServiceOfHost(w *mesh.Workload, host string) *mesh.Service {
	var found *mesh.Service
	for i := range w.Services {
		ns, h, _ := strings.Cut(w.Services[i].Key, "/")
		if h != host || (found != nil && ns != w.Namespace) {
			continue
		}
		if v := s.Service(w.Services[i].Key); v != nil {
			found = v
		}
	}
	return found
}

// ServiceByVIP finds the service that a client in clientNamespace means by an address: exact VIPs before ranges. Among
// equals the client's own namespace wins, then the longest prefix, then the canonical service, then the first by key.
// Services private to another namespace do not exist for the client. Nil if there is none.
func (s *Snapshot) ServiceByVIP(network string, a netip.Addr, clientNamespace string) *mesh.Service {
	a = a.Unmap().WithZone("")
	if set := s.vipSet(&s.vips, network, a, -1); set != nil {
		if v := set.pick(clientNamespace); v != nil {
			return v
		}
	}
	if s.lengths == nil {
		return nil
	}
	var best *mesh.Service
	lengths := s.lengths.of(a)
	for bits := a.BitLen(); bits >= 0; bits-- {
		if lengths[bits] == 0 {
			continue
		}
		p, _ := a.Prefix(bits)
		set := s.vipSet(&s.cidrs, network, p.Addr(), bits)
		if set == nil {
			continue
		}
		v := set.pick(clientNamespace)
		if v == nil || (best != nil && v.Namespace != clientNamespace) {
			continue
		}
		if v.Namespace == clientNamespace {
			return v
		}
		best = v
	}
	return best
}

func (s *Snapshot) vipSet(t *table[*vipSet], network string, a netip.Addr, bits int) *vipSet {
	v, _ := t.get(hashPrefix(network, a, bits), func(v *vipSet) bool {
		return v.prefix.Addr() == a && (bits < 0 || v.prefix.Bits() == bits) && v.network == network
	})
	return v
}

func (v *vipSet) pick(clientNamespace string) *mesh.Service {
	var best *mesh.Service
	for _, c := range v.services {
		switch {
		case c.Namespace == clientNamespace:
			return c
		case c.NamespacePrivate:
		case best == nil || (c.Canonical && !best.Canonical):
			best = c
		}
	}
	return best
}

// Policy finds a policy by its key, "namespace/name"; nil if there is none.
func (s *Snapshot) Policy(key string) *mesh.Policy {
	ns, name, _ := strings.Cut(key, "/")
	p, _ := s.policies.get(hashPair(ns, name), func(p *mesh.Policy) bool { return p.Namespace == ns && p.Name == name })
	return p
}

// Len counts the objects.
func (s *Snapshot) Len() (workloads, services, policies int) {
	return s.workloads.n, s.services.n, s.policies.n
}

// AllWorkloads yields every workload, sorted by uid.
func (s *Snapshot) AllWorkloads() iter.Seq[*mesh.Workload] {
	return sorted(s.workloads.all(), func(a, b *mesh.Workload) int { return strings.Compare(a.UID, b.UID) })
}

// AllServices yields every service, sorted by key.
func (s *Snapshot) AllServices() iter.Seq[*mesh.Service] {
	return sorted(s.services.all(), compareServices)
}

// AllPolicies yields every policy, sorted by key.
func (s *Snapshot) AllPolicies() iter.Seq[*mesh.Policy] {
	return sorted(s.policies.all(), comparePolicies)
}

// Staged yields the keys of services that have endpoints but are not known themselves, sorted.
func (s *Snapshot) Staged() iter.Seq[string] {
	return sorted(func(yield func(string) bool) {
		for e := range s.endpoints.all() {
			if s.Service(e.key) == nil && !yield(e.key) {
				return
			}
		}
	}, strings.Compare)
}

func sorted[T any](seq iter.Seq[T], cmp func(a, b T) int) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, v := range slices.SortedFunc(seq, cmp) {
			if !yield(v) {
				return
			}
		}
	}
}

func compareServices(a, b *mesh.Service) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Hostname, b.Hostname)
}

func comparePolicies(a, b *mesh.Policy) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}
