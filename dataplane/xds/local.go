// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Local is what stands in for a control plane.
type Local struct {
	Workloads []*mesh.Workload
	Services  []*mesh.Service
	Policies  []*mesh.Policy
	// Bad are the objects that have problems and are in none of these: of what is held, their last good versions.
	Bad []BadLocal
}

// BadLocal names an object by its section ("workloads") and by its uid or key. Either is empty where it cannot be told: then
// it may be any.
type BadLocal struct{ Section, Key string }

// localSections are the keys of the document, in the order in which their objects are checked.
var localSections = []string{"workloads", "services", "policies"}

// DecodeLocal is ReadLocal of a document that is in memory.
func DecodeLocal(document []byte) (Local, error) { return ReadLocal(bytes.NewReader(document)) }

// ReadLocal reads ztunnel's local configuration: workloads, services and policies in YAML. It is strict; the error joins
// every problem, each with its path ("workloads[2].workloadIps[0]"). Objects without a problem are returned also then.
// Items are read and parsed one at a time where the document's layout allows, so that a large one need exist neither as
// text nor as a tree; that is looked at first, so it is read twice.
func ReadLocal(document io.ReadSeeker) (Local, error) {
	d := newLocalDecoder()
	ok, err := splitLocal(document, nil)
	if err == nil {
		_, err = document.Seek(0, io.SeekStart)
	}
	if err != nil {
		return Local{}, err
	}
	if ok {
		if ok, err = splitLocal(document, d.split()); err != nil {
			return Local{}, err
		}
	}
	if ok {
		return d.end()
	}
	d = newLocalDecoder() // also if it was changed meanwhile
	if _, err = document.Seek(0, io.SeekStart); err != nil {
		return Local{}, err
	}
	all, err := io.ReadAll(document)
	if err != nil {
		return Local{}, err
	}
	d.whole(all)
	return d.end()
}

// split decodes items one by one.
func (d *localDecoder) split() func(localItem) {
	count := map[string]int{}
	return func(item localItem) {
		i := count[item.section]
		count[item.section]++
		var n yaml.Node
		if err := yaml.Unmarshal(item.text, &n); err != nil {
			d.problem(index(item.section, i), "from line %d: %v", item.line, err)
			d.bad(item.section, "", len(d.problems)-1)
			return
		}
		list := n.Content[0]
		if len(list.Content) != 1 {
			d.problem(index(item.section, i), "from line %d: want one item", item.line)
			return
		}
		d.item(item.section, i, list.Content[0])
	}
}

// end returns the result. A problem of no object's may have hidden any.
func (d *localDecoder) end() (Local, error) {
	if len(d.problems) > d.blamed {
		d.out.Bad = append(d.out.Bad, BadLocal{})
	}
	return d.out, errors.Join(d.problems...)
}

// bad notes the object that has every problem from the one numbered before.
func (d *localDecoder) bad(section, key string, before int) {
	d.blamed += len(d.problems) - before
	d.out.Bad = append(d.out.Bad, BadLocal{section, key})
}

// localDecoder collects objects and problems.
type localDecoder struct {
	out      Local
	problems []error
	blamed   int                       // how many of problems are in out.Bad
	seen     map[string]map[string]int // section -> key of an object -> its index there
}

func newLocalDecoder() *localDecoder {
	d := &localDecoder{seen: map[string]map[string]int{}}
	for _, section := range localSections {
		d.seen[section] = map[string]int{}
	}
	return d
}

func (d *localDecoder) problem(path, format string, args ...any) {
	d.problems = append(d.problems, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
}

func (d *localDecoder) whole(document []byte) {
	var n yaml.Node
	if err := yaml.Unmarshal(document, &n); err != nil {
		d.problems = append(d.problems, err)
		return
	}
	if len(n.Content) == 0 {
		return
	}
	table := fields{}
	for _, section := range localSections {
		i := 0
		table[section] = d.each(func(n *yaml.Node, _ string) {
			d.item(section, i, n)
			i++
		})
	}
	d.object(n.Content[0], "", table)
}

// item decodes the object at index i of the section and keeps it if nothing is wrong with it.
func (d *localDecoder) item(section string, i int, n *yaml.Node) {
	before, path := len(d.problems), index(section, i)
	keep := func(kind, key string) bool {
		if len(d.problems) > before {
			return false
		}
		first, again := d.seen[section][key]
		if again {
			d.problem(path, "%s %q is also %s", kind, key, index(section, first))
			return false
		}
		d.seen[section][key] = i
		return true
	}
	key := ""
	switch section {
	case "workloads":
		w := d.workload(n, path)
		if w.UID != localUID(w) || w.Namespace != "" && w.Name != "" {
			key = w.UID
		}
		if keep("workload", w.UID) {
			d.out.Workloads = append(d.out.Workloads, w)
		}
	case "services":
		s := d.service(n, path)
		if s.Namespace != "" && s.Hostname != "" {
			key = s.Key()
		}
		if keep("service", s.Key()) {
			d.out.Services = append(d.out.Services, s)
		}
	case "policies":
		p := d.policy(n, path)
		if p.Namespace != "" && p.Name != "" {
			key = p.Key()
		}
		if keep("policy", p.Key()) {
			d.out.Policies = append(d.out.Policies, p)
		}
	}
	if len(d.problems) > before {
		d.bad(section, key, before)
	}
}

func (d *localDecoder) workload(n *yaml.Node, path string) *mesh.Workload {
	w := &mesh.Workload{Capacity: 1}
	d.object(n, path, fields{
		"uid": d.text(&w.UID), "name": d.text(&w.Name), "namespace": d.text(&w.Namespace), "network": d.text(&w.Network),
		"trustDomain": d.text(&w.TrustDomain), "serviceAccount": d.text(&w.ServiceAccount),
		"workloadIps": d.each(d.addr(&w.Addresses)),
		"protocol":    enum(d, &w.Tunnel, map[string]mesh.Tunnel{"TCP": mesh.TunnelNone, "NONE": mesh.TunnelNone, "HBONE": mesh.TunnelHBONE}),
		"networkMode": enum(d, &w.NetworkMode, map[string]mesh.NetworkMode{"Standard": mesh.NetworkStandard, "HostNetwork": mesh.NetworkHost}),
		"node":        d.text(&w.Node), "clusterId": d.text(&w.ClusterID), "hostname": d.text(&w.Hostname),
		"workloadName": d.text(&w.WorkloadName),
		"workloadType": enum(d, &w.Type, map[string]mesh.WorkloadType{
			"Deployment": mesh.Deployment, "CronJob": mesh.CronJob, "Pod": mesh.Pod, "Job": mesh.Job,
		}),
		"canonicalName": d.text(&w.CanonicalName), "canonicalRevision": d.text(&w.CanonicalRevision),
		"nativeTunnel": d.flag(&w.NativeTunnel),
		"status":       enum(d, &w.Status, map[string]mesh.Health{"Healthy": mesh.Healthy, "Unhealthy": mesh.Unhealthy}),
		"capacity":     d.number(1<<32-1, func(v uint64) { w.Capacity = uint32(v) }),
		"locality": func(n *yaml.Node, path string) {
			d.object(n, path, fields{
				"region": d.text(&w.Locality.Region), "zone": d.text(&w.Locality.Zone), "subzone": d.text(&w.Locality.Subzone),
			})
		},
		"services":              d.memberships(&w.Services),
		"authorizationPolicies": d.keys(&w.AuthorizationPolicies),
		"applicationTunnel":     d.tunnel(&w.ApplicationTunnel),
		"waypoint":              d.gateway(&w.Waypoint),
		"networkGateway":        d.gateway(&w.NetworkGateway),
	})
	d.require(n, path, "workloadIps", "namespace")
	if w.UID == "" {
		w.UID = localUID(w)
	}
	return w
}

// localUID names a workload that was given no uid as the control plane would name a pod.
func localUID(w *mesh.Workload) string {
	name := w.Name
	if name == "" && len(w.Addresses) > 0 {
		name = w.Addresses[0].String()
	}
	return strings.Join([]string{w.ClusterID, "", "Pod", w.Namespace, name}, "/")
}

func (d *localDecoder) service(n *yaml.Node, path string) *mesh.Service {
	s := &mesh.Service{}
	d.object(n, path, fields{
		"name": d.text(&s.Name), "namespace": d.text(&s.Namespace), "hostname": d.text(&s.Hostname),
		"vips": d.each(d.scalar(func(text string) error {
			a, err := parseNetworkAddress(text)
			s.VIPs = append(s.VIPs, a)
			return err
		})),
		"cidrVips": d.each(d.scalar(func(text string) error {
			network, rest, ok := strings.Cut(text, "/")
			prefix, err := netip.ParsePrefix(rest)
			if !ok || err != nil {
				return fmt.Errorf("%q: want <network>/<address>/<bits>", text)
			}
			s.CIDRs = append(s.CIDRs, mesh.NetworkPrefix{Network: network, Prefix: prefix.Masked()})
			return nil
		})),
		"ports": d.ports(&s.Ports),
		"subjectAltNames": d.each(d.scalar(func(text string) error {
			s.SubjectAltNames = append(s.SubjectAltNames, text)
			return nil
		})),
		"waypoint": d.gateway(&s.Waypoint),
		"weightedWaypoints": d.each(func(n *yaml.Node, path string) {
			w := mesh.WeightedWaypoint{}
			var to *mesh.GatewayAddress
			d.object(n, path, fields{"destination": d.gateway(&to), "weight": d.number(1<<32-1, func(v uint64) { w.Weight = uint32(v) })})
			if d.require(n, path, "destination"); to != nil {
				w.Destination = *to
				s.Waypoints = append(s.Waypoints, w)
			}
		}),
		"loadBalancer": d.balancing(&s.LoadBalancing),
		"ipFamilies": enum(d, &s.Families, map[string]mesh.IPFamilies{
			"Automatic": mesh.FamiliesAutomatic, "IPv4": mesh.FamiliesIPv4, "IPv6": mesh.FamiliesIPv6, "Dual": mesh.FamiliesDual,
		}),
		"canonical":          d.flag(&s.Canonical),
		"ingressUseWaypoint": d.flag(&s.IngressWaypoint),
		"visibility":         enum(d, &s.NamespacePrivate, map[string]bool{"Public": false, "Namespace": true}),
	})
	d.require(n, path, "name", "namespace", "hostname")
	return s
}
