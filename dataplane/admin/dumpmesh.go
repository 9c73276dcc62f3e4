// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// List is a slice that is written as [] when nil: readers of a dump expect lists to exist.
type List[T any] []T

// MarshalJSON implements json.Marshaler.
func (l List[T]) MarshalJSON() ([]byte, error) {
	if l == nil {
		return []byte("[]"), nil
	}
	return json.Marshal([]T(l))
}

// UnmarshalJSON implements json.Unmarshaler. An object is read as the list of its values, in the order of its keys: older
// ztunnels of upstream dump workloads and services like that.
func (l *List[T]) UnmarshalJSON(data []byte) error {
	if text := bytes.TrimSpace(data); len(text) == 0 || text[0] != '{' {
		return json.Unmarshal(data, (*[]T)(l))
	}
	var byKey map[string]T
	if err := json.Unmarshal(data, &byKey); err != nil {
		return err
	}
	*l = make(List[T], 0, len(byKey))
	for _, k := range slices.Sorted(maps.Keys(byKey)) {
		*l = append(*l, byKey[k])
	}
	return nil
}

// Map is a map that is written as {} when nil.
type Map[T any] map[string]T

// MarshalJSON implements json.Marshaler.
func (m Map[T]) MarshalJSON() ([]byte, error) {
	if m == nil {
		return []byte("{}"), nil
	}
	return json.Marshal(map[string]T(m))
}

// DumpWorkload is w in the dump's shape.
func DumpWorkload(w *mesh.Workload) Workload {
	id := w.Identity()
	d := Workload{
		UID: w.UID, WorkloadIPs: addrStrings(w.Addresses), Waypoint: dumpGateway(w.Waypoint), NetworkGateway: dumpGateway(w.NetworkGateway),
		Protocol: w.Tunnel.String(), NetworkMode: "Standard", Name: w.Name, Namespace: w.Namespace,
		TrustDomain: id.TrustDomain, ServiceAccount: id.ServiceAccount, Network: w.Network,
		WorkloadName: w.WorkloadName, WorkloadType: w.Type.String(), CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Hostname: w.Hostname, Node: w.Node, NativeTunnel: w.NativeTunnel, AuthorizationPolicies: w.AuthorizationPolicies,
		Status: w.Status.String(), ClusterID: w.ClusterID, Capacity: w.Capacity,
	}
	if w.NetworkMode == mesh.NetworkHost {
		d.NetworkMode = "HostNetwork"
	}
	if t := w.ApplicationTunnel; t != nil {
		d.ApplicationTunnel = &ApplicationTunnel{Protocol: "NONE"}
		if t.ProxyProtocol {
			d.ApplicationTunnel.Protocol = "PROXY"
		}
		if t.Port != 0 {
			d.ApplicationTunnel.Port = &t.Port
		}
	}
	if w.Locality != (mesh.Locality{}) {
		d.Locality = &Locality{w.Locality.Region, w.Locality.Zone, w.Locality.Subzone}
	}
	for i := range w.Services {
		d.Services = append(d.Services, w.Services[i].Key)
	}
	return d
}

// DumpService is s in the dump's shape, with the workloads that are its endpoints.
func DumpService(s *mesh.Service, endpoints []*mesh.Workload) Service {
	d := Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, Ports: dumpPorts(s.Ports), SubjectAltNames: s.SubjectAltNames,
		Endpoints: DumpEndpoints(s.Key(), endpoints), Waypoint: dumpGateway(s.Waypoint), LoadBalancer: dumpLoadBalancer(&s.LoadBalancing),
		IPFamilies: [...]string{"", "IPv4", "IPv6", "Dual"}[s.Families&3], Canonical: s.Canonical,
	}
	for _, v := range s.VIPs {
		d.VIPs = append(d.VIPs, v.String())
	}
	for _, v := range s.CIDRs {
		d.CIDRVIPs = append(d.CIDRVIPs, v.Network+"/"+v.Prefix.String())
	}
	for i := range s.Waypoints {
		d.Waypoints = append(d.Waypoints, WeightedGate{*dumpGateway(&s.Waypoints[i].Destination), s.Waypoints[i].Weight})
	}
	if s.NamespacePrivate {
		d.Visibility = "Namespace"
	}
	return d
}

// DumpEndpoints are the memberships in the service key of workloads, by uid.
func DumpEndpoints(key string, workloads []*mesh.Workload) Map[Endpoint] {
	m := make(Map[Endpoint], len(workloads))
	for _, w := range workloads {
		member, _ := w.Membership(key)
		m[w.UID] = Endpoint{WorkloadUID: w.UID, Port: dumpPorts(member.Ports), Status: w.Status.String()}
	}
	return m
}

func dumpLoadBalancer(lb *mesh.LoadBalancing) *LoadBalancer {
	if lb.Mode == mesh.BalanceStandard && len(lb.Scopes) == 0 && !lb.AllowUnhealthy {
		return nil
	}
	d := &LoadBalancer{Mode: [...]string{"Standard", "Strict", "Failover", "Passthrough"}[lb.Mode&3], HealthPolicy: "OnlyHealthy"}
	if lb.AllowUnhealthy {
		d.HealthPolicy = "AllowAll"
	}
	names := [...]string{"Unspecified", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"}
	for _, s := range lb.Scopes {
		if int(s) < len(names) {
			d.RoutingPreferences = append(d.RoutingPreferences, names[s])
		}
	}
	return d
}

// Policy is one policy of a dump: rules, clauses, matches.
type Policy struct {
	Name      string              `json:"name"`
	Namespace string              `json:"namespace"`
	Scope     string              `json:"scope"`
	Action    string              `json:"action"`
	DryRun    bool                `json:"dryRun,omitempty"`
	Rules     List[List[[]Match]] `json:"rules"`
}

// Match is one match of a policy.
type Match struct {
	Namespaces          []StringMatch         `json:"namespaces,omitempty"`
	NotNamespaces       []StringMatch         `json:"notNamespaces,omitempty"`
	ServiceAccounts     []ServiceAccountMatch `json:"serviceAccounts,omitempty"`
	NotServiceAccounts  []ServiceAccountMatch `json:"notServiceAccounts,omitempty"`
	Principals          []StringMatch         `json:"principals,omitempty"`
	NotPrincipals       []StringMatch         `json:"notPrincipals,omitempty"`
	SourceIPs           []string              `json:"sourceIps,omitempty"`
	NotSourceIPs        []string              `json:"notSourceIps,omitempty"`
	DestinationIPs      []string              `json:"destinationIps,omitempty"`
	NotDestinationIPs   []string              `json:"notDestinationIps,omitempty"`
	DestinationPorts    []uint16              `json:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16              `json:"notDestinationPorts,omitempty"`
}

// StringMatch has one of its fields.
type StringMatch struct {
	Exact    *string   `json:"Exact,omitempty"`
	Prefix   *string   `json:"Prefix,omitempty"`
	Suffix   *string   `json:"Suffix,omitempty"`
	Presence *struct{} `json:"Presence,omitempty"`
}

// ServiceAccountMatch names one service account.
type ServiceAccountMatch struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// DumpPolicy is p in the dump's shape.
func DumpPolicy(p *mesh.Policy) Policy {
	d := Policy{
		Name: p.Name, Namespace: p.Namespace, Action: p.Action.String(), DryRun: p.DryRun,
		Scope: [...]string{"Global", "Namespace", "WorkloadSelector", ""}[p.Scope&3],
	}
	for _, r := range p.Rules {
		var clauses List[[]Match]
		for _, c := range r.Clauses {
			matches := make([]Match, len(c.Matches))
			for i := range c.Matches {
				matches[i] = dumpMatch(&c.Matches[i])
			}
			clauses = append(clauses, matches)
		}
		d.Rules = append(d.Rules, clauses)
	}
	return d
}

func dumpMatch(m *mesh.Match) Match {
	return Match{
		Namespaces: dumpStrings(m.Namespaces), NotNamespaces: dumpStrings(m.NotNamespaces),
		ServiceAccounts: dumpAccounts(m.ServiceAccounts), NotServiceAccounts: dumpAccounts(m.NotServiceAccounts),
		Principals: dumpStrings(m.Principals), NotPrincipals: dumpStrings(m.NotPrincipals),
		SourceIPs: prefixStrings(m.SourceIPs), NotSourceIPs: prefixStrings(m.NotSourceIPs),
		DestinationIPs: prefixStrings(m.DestinationIPs), NotDestinationIPs: prefixStrings(m.NotDestinationIPs),
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts,
	}
}

func dumpStrings(ms []mesh.StringMatch) []StringMatch {
	var out []StringMatch
	for _, m := range ms {
		switch m.Kind {
		case mesh.MatchPrefix:
			out = append(out, StringMatch{Prefix: &m.Value})
		case mesh.MatchSuffix:
			out = append(out, StringMatch{Suffix: &m.Value})
		case mesh.MatchPresence:
			out = append(out, StringMatch{Presence: &struct{}{}})
		default:
			out = append(out, StringMatch{Exact: &m.Value})
		}
	}
	return out
}

func dumpAccounts(ms []mesh.ServiceAccountMatch) []ServiceAccountMatch {
	var out []ServiceAccountMatch
	for _, m := range ms {
		out = append(out, ServiceAccountMatch(m))
	}
	return out
}

func prefixStrings(ps []netip.Prefix) []string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}
