// SPDX-License-Identifier: Apache-2.0

// Package zc shows what ztunnels know as `istioctl ztunnel-config` does: the same columns from the same config dump, so
// that upstream's ztunnel can be looked into as well. It merges the dumps of several nodes and picks what concerns one
// pod; where dumps come from and how they are printed is its caller's.
// Source: reference, "Admin"; the columns that istioctl 1.27 prints.
package zc

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Table is rows for people.
type Table struct {
	Header []string
	Rows   [][]string
}

// Dumps are config dumps by node.
type Dumps map[string]*admin.Dump

// Nodes are the nodes, sorted.
func (ds Dumps) Nodes() []string { return slices.Sorted(maps.Keys(ds)) }

// Merged is everything that the ztunnels know: what all of them should know once, and what each has for itself. On what
// they do not agree, notes says so.
func (ds Dumps) Merged() (all *admin.Dump, notes []string) {
	all = &admin.Dump{WorkloadState: admin.Map[admin.WorkloadState]{}, StagedServices: admin.Map[admin.Map[admin.Endpoint]]{}}
	workloads, services, policies := newUnion(ds, "workload"), newUnion(ds, "service"), newUnion(ds, "policy")
	for _, node := range ds.Nodes() {
		d := ds[node]
		for i := range d.Workloads {
			if workloads.add(node, workloadKey(&d.Workloads[i]), d.Workloads[i]) {
				all.Workloads = append(all.Workloads, d.Workloads[i])
			}
		}
		for i := range d.Services {
			if services.add(node, d.Services[i].Namespace+"/"+d.Services[i].Hostname, d.Services[i]) {
				all.Services = append(all.Services, d.Services[i])
			}
		}
		for i := range d.Policies {
			if policies.add(node, d.Policies[i].Namespace+"/"+d.Policies[i].Name, d.Policies[i]) {
				all.Policies = append(all.Policies, d.Policies[i])
			}
		}
		all.Certificates = append(all.Certificates, d.Certificates...)
		maps.Copy(all.WorkloadState, d.WorkloadState)
		maps.Copy(all.StagedServices, d.StagedServices)
	}
	return all, slices.Concat(workloads.notes(), services.notes(), policies.notes())
}

func workloadKey(w *admin.Workload) string {
	if w.UID != "" {
		return w.UID
	}
	return w.Namespace + "/" + w.Name
}

// union finds out which nodes know an object, and whether they know the same of it.
type union struct {
	kind  string
	nodes []string
	first map[string]string // key → the object as JSON, as the first node has it
	holds map[string][]string
	other map[string][]string // nodes whose object differs from the first one's
}

func newUnion(ds Dumps, kind string) *union {
	return &union{kind: kind, nodes: ds.Nodes(), first: map[string]string{}, holds: map[string][]string{}, other: map[string][]string{}}
}

// add reports whether no node before had the object.
func (u *union) add(node, key string, object any) bool {
	text, err := json.Marshal(object)
	if err != nil {
		text = fmt.Append(nil, err)
	}
	known, had := u.first[key]
	switch {
	case !had:
		u.first[key] = string(text)
	case known != string(text):
		u.other[key] = append(u.other[key], node)
	}
	u.holds[key] = append(u.holds[key], node)
	return !had
}

func (u *union) notes() []string {
	var notes []string
	for _, key := range slices.Sorted(maps.Keys(u.holds)) {
		if len(u.other[key]) > 0 {
			notes = append(notes, fmt.Sprintf("%s %s: %s does not have it as %s has", u.kind, key, strings.Join(u.other[key], ", "), u.holds[key][0]))
		}
		var lack []string
		for _, n := range u.nodes {
			if !slices.Contains(u.holds[key], n) {
				lack = append(lack, n)
			}
		}
		if len(lack) > 0 {
			notes = append(notes, fmt.Sprintf("%s %s: unknown to %s", u.kind, key, strings.Join(lack, ", ")))
		}
	}
	return notes
}

// Filter picks objects of a dump; zero fields pick all.
type Filter struct {
	Namespace    string
	Address      string // of a workload or a service
	Direction    string // of a connection: inbound or outbound
	Pod, PodUID  string // what concerns this pod: PodUID is of the lab, "" if it is not known
	PodNamespace string // "" fits any
}

// Pick is the part of d that f picks, sorted for people.
func Pick(d *admin.Dump, f Filter) *admin.Dump {
	out := *d
	self := f.self(d)
	out.Workloads = keep(d.Workloads, func(w *admin.Workload) bool {
		return f.inNamespace(w.Namespace) && (f.Address == "" || slices.Contains(w.WorkloadIPs, f.Address)) &&
			(f.Pod == "" || self != nil && workloadKey(w) == workloadKey(self))
	})
	out.Services = keep(d.Services, func(s *admin.Service) bool {
		return f.inNamespace(s.Namespace) && (f.Address == "" || slices.ContainsFunc(s.VIPs, func(v string) bool { return address(v) == f.Address })) &&
			(f.Pod == "" || self != nil && endpointOf(s, self))
	})
	out.Policies = keep(d.Policies, func(p *admin.Policy) bool {
		return f.inNamespace(p.Namespace) && (f.Pod == "" || self != nil && applies(p, self))
	})
	out.Certificates = keep(d.Certificates, func(c *admin.Certificates) bool {
		return (f.Namespace == "" || strings.Contains(c.Identity, "/ns/"+f.Namespace+"/")) && (f.Pod == "" || self != nil && c.Identity == identity(self))
	})
	out.WorkloadState = admin.Map[admin.WorkloadState]{}
	for uid, s := range d.WorkloadState {
		mine := f.Pod == "" || uid == f.PodUID || s.Info.Name == f.Pod && f.fits(s.Info.Namespace)
		if f.inNamespace(s.Info.Namespace) && mine {
			out.WorkloadState[uid] = f.directed(s)
		}
	}
	slices.SortFunc(out.Workloads, func(a, b admin.Workload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node, b.Node))
	})
	slices.SortFunc(out.Services, func(a, b admin.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Hostname, b.Hostname))
	})
	slices.SortFunc(out.Policies, func(a, b admin.Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	slices.SortStableFunc(out.Certificates, func(a, b admin.Certificates) int { return cmp.Compare(a.Identity, b.Identity) })
	return &out
}

func keep[T any](all []T, want func(*T) bool) []T {
	out := []T{}
	for i := range all {
		if want(&all[i]) {
			out = append(out, all[i])
		}
	}
	return out
}

func (f Filter) fits(podNamespace string) bool {
	return f.PodNamespace == "" || f.PodNamespace == podNamespace
}

func (f Filter) inNamespace(ns string) bool { return f.Namespace == "" || f.Namespace == ns }

// self is the workload of the pod that f picks, if the dump has it.
func (f Filter) self(d *admin.Dump) *admin.Workload {
	for i := range d.Workloads {
		if w := &d.Workloads[i]; f.Pod != "" && w.Name == f.Pod && f.fits(w.Namespace) {
			return w
		}
	}
	return nil
}

func (f Filter) directed(s admin.WorkloadState) admin.WorkloadState {
	switch f.Direction {
	case "inbound":
		s.Connections.Outbound = nil
	case "outbound":
		s.Connections.Inbound = nil
	}
	return s
}

func endpointOf(s *admin.Service, w *admin.Workload) bool {
	if slices.Contains(w.Services, s.Namespace+"/"+s.Hostname) {
		return true
	}
	for _, e := range s.Endpoints {
		if e.WorkloadUID == w.UID {
			return true
		}
	}
	return false
}

// applies is A6.1: policies of the whole mesh, of the workload's namespace, and those that it names.
func applies(p *admin.Policy, w *admin.Workload) bool {
	switch p.Scope {
	case "Global":
		return true
	case "Namespace":
		return p.Namespace == w.Namespace
	default:
		return slices.Contains(w.AuthorizationPolicies, p.Namespace+"/"+p.Name)
	}
}

func identity(w *admin.Workload) string {
	return mesh.Identity{
		TrustDomain: cmp.Or(w.TrustDomain, "cluster.local"), Namespace: w.Namespace, ServiceAccount: cmp.Or(w.ServiceAccount, "default"),
	}.String()
}

// address is the part of "network/address" that people know.
func address(networkAddress string) string {
	_, ip, found := strings.Cut(networkAddress, "/")
	if !found {
		return networkAddress
	}
	return ip
}
