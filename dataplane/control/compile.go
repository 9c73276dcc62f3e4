// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// Settings are what the meaning of objects depends on beside the objects.
type Settings struct {
	ClusterID   string // "" means Kubernetes
	TrustDomain string // "" means mesh.DefaultTrustDomain
	Domain      string // suffix of service hostnames; "" means cluster.local
	Network     string // the network of everything that names none

	// RootNamespace is where policies without a selector hold for the whole mesh; "" means istio-system.
	RootNamespace string

	// NoAutoAllocate leaves ServiceEntries without addresses as they are, but for those that their status has.
	NoAutoAllocate bool
}

func (s Settings) withDefaults() Settings {
	s.ClusterID = cmp.Or(s.ClusterID, "Kubernetes")
	s.TrustDomain = cmp.Or(s.TrustDomain, mesh.DefaultTrustDomain)
	s.Domain = cmp.Or(s.Domain, "cluster.local")
	s.RootNamespace = cmp.Or(s.RootNamespace, "istio-system")
	return s
}

// wireTrustDomain is what a workload says: nothing if that means the same.
func (s Settings) wireTrustDomain() string {
	if s.TrustDomain == mesh.DefaultTrustDomain {
		return ""
	}
	return s.TrustDomain
}

// Snapshot is the mesh that objects mean. It is immutable.
type Snapshot struct {
	Workloads []*mesh.Workload // sorted by UID
	Services  []*mesh.Service  // sorted by key
	Policies  []*mesh.Policy   // sorted by namespace, then name
	// Conditions say what became of each policy, and of each service that asks for a waypoint; sorted by object.
	Conditions []Condition
	// Problems are objects that are sound by themselves, but cannot have the meaning that they ask for.
	Problems []source.Problem
}

// Compile says what objects mean. It does no I/O and touches nothing.
func Compile(objects *source.Objects, settings Settings) *Snapshot {
	c := &compiler{objects: objects, Settings: settings.withDefaults(), uids: map[string]bool{}}
	c.networks = c.nodeNetworks()
	c.allocate()
	c.services()
	c.policies()
	c.waypoints()
	slices.SortFunc(c.out.Conditions, compareConditions)
	c.pods()
	c.workloadEntries()
	c.endpointSlices()
	c.inlinedEndpoints()
	slices.SortFunc(c.out.Workloads, func(a, b *mesh.Workload) int { return cmp.Compare(a.UID, b.UID) })
	for _, w := range c.out.Workloads {
		slices.SortFunc(w.Services, func(a, b mesh.Membership) int { return cmp.Compare(a.Key, b.Key) })
	}
	slices.SortFunc(c.out.Problems, func(a, b source.Problem) int { return cmp.Compare(a.Error(), b.Error()) })
	return &c.out
}

type compiler struct {
	Settings
	objects *source.Objects
	out     Snapshot

	networks  []string // the cluster's own first, then those that nodes name
	selecting *selectors[*binding]
	guards    *guards             // nil without policies that single workloads name
	byKey     map[string]*binding // services by "namespace/hostname"
	automatic map[entryHost][]mesh.NetworkAddress
	entries   map[string][]*binding // the services of each ServiceEntry, by "namespace/name"
	podOf     map[string]*mesh.Workload
	uids      map[string]bool
}

func (c *compiler) problem(kind string, o source.Object, field, format string, args ...any) {
	c.out.Problems = append(c.out.Problems, source.Problem{
		Key: source.Key{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}, Field: field, Err: fmt.Errorf(format, args...),
	})
}

// nodeNetworks are the networks that the cluster's nodes are in.
func (c *compiler) nodeNetworks() []string {
	networks := []string{c.Network}
	for _, n := range sorted(c.objects.Nodes) {
		if name := n.Labels[mesh.LabelNetwork]; name != "" && !slices.Contains(networks, name) {
			networks = append(networks, name)
		}
	}
	return networks
}

var errSameUID = errors.New("another object has the same workload UID")

// add takes a workload in; every one has a UID of its own.
func (c *compiler) add(kind string, o source.Object, w *mesh.Workload) bool {
	if c.uids[w.UID] {
		c.problem(kind, o, "", "%q: %w", w.UID, errSameUID)
		return false
	}
	c.uids[w.UID] = true
	w.TrustDomain = c.wireTrustDomain()
	w.ClusterID = c.ClusterID
	if w.Network == "" {
		w.Network = c.Network
	}
	if w.ServiceAccount == mesh.DefaultServiceAccount {
		w.ServiceAccount = ""
	}
	c.out.Workloads = append(c.out.Workloads, w)
	return true
}

func (c *compiler) address(s string) (mesh.NetworkAddress, bool) {
	a, err := netip.ParseAddr(s)
	return mesh.NetworkAddress{Network: c.Network, Addr: a.Unmap()}, err == nil
}

// sorted walks a kind in the order of its keys, so that what depends on order is the same every time.
func sorted[T any](m map[string]T) func(yield func(string, T) bool) {
	return func(yield func(string, T) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// locality is where a node says that it is.
func locality(n *corev1.Node) mesh.Locality {
	if n == nil {
		return mesh.Locality{}
	}
	return mesh.Locality{
		Region:  n.Labels[corev1.LabelTopologyRegion],
		Zone:    n.Labels[corev1.LabelTopologyZone],
		Subzone: n.Labels["topology.istio.io/subzone"],
	}
}
