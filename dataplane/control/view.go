// SPDX-License-Identifier: Apache-2.0

package control

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/xds"
)

// resource is one object on the wire. Its version is a hash of its bytes, so that it means the same in every process.
type resource struct {
	name    string
	version string
	value   []byte
}

// table holds the resources of one type.
type table struct {
	byName map[string]*resource
	names  []string // sorted
}

func (t *table) version(name string) (string, bool) {
	if t == nil || t.byName[name] == nil {
		return "", false
	}
	return t.byName[name].version, true
}

// delta is what changed between a table and the one of the view before.
type delta struct {
	changed []string
	removed []string
}

// view is a snapshot as it is served. It is immutable.
type view struct {
	generation uint64
	snapshot   *Snapshot
	problems   []source.Problem // of encoding
	tables     map[string]*table
	deltas     map[string]delta // from the view of the generation before

	onlyWorkloads sync.Once // what is of type Workload is made when first asked for: ztunnel never does
	workloads     *table

	index   sync.Once // what follows serves look-ups on demand
	byAddr  map[string][]string
	members map[string][]string
}

// newView encodes a snapshot. A resource that is what it was in prev keeps prev's bytes; one that cannot be encoded keeps
// prev's version, and is reported.
func newView(s *Snapshot, prev *view) *view {
	v := &view{snapshot: s, tables: map[string]*table{}, deltas: map[string]delta{}}
	if prev == nil {
		prev = &view{}
	}
	v.generation = prev.generation + 1
	addresses := &table{byName: make(map[string]*resource, len(s.Workloads)+len(s.Services))}
	for _, svc := range s.Services {
		name, value, err := xds.EncodeService(svc)
		v.put(addresses, prev.tables[xds.TypeAddress], svc.Key(), name, value, err)
	}
	for _, w := range s.Workloads {
		name, value, err := xds.EncodeWorkload(w)
		v.put(addresses, prev.tables[xds.TypeAddress], w.UID, name, value, err)
	}
	policies := &table{byName: map[string]*resource{}}
	for _, p := range s.Policies {
		name, value, err := xds.EncodePolicy(p)
		v.put(policies, prev.tables[xds.TypeAuthorization], p.Key(), name, value, err)
	}
	for url, t := range map[string]*table{xds.TypeAddress: addresses, xds.TypeAuthorization: policies} {
		t.names = slices.Sorted(maps.Keys(t.byName))
		v.tables[url] = t
		v.deltas[url] = diff(prev.tables[url], t)
	}
	return v
}

func (v *view) put(t, prev *table, key, name string, value []byte, err error) {
	if err != nil {
		v.problems = append(v.problems, source.Problem{Err: fmt.Errorf("encode %s: %w", key, err)})
		if prev != nil && prev.byName[key] != nil {
			t.byName[key] = prev.byName[key]
		}
		return
	}
	sum := sha256.Sum256(value)
	r := &resource{name: name, version: hex.EncodeToString(sum[:8]), value: value}
	if prev != nil {
		if was := prev.byName[name]; was != nil && was.version == r.version {
			r = was
		}
	}
	t.byName[name] = r
}

func diff(prev, next *table) delta {
	var d delta
	for _, name := range next.names {
		if v, ok := prev.version(name); !ok || v != next.byName[name].version {
			d.changed = append(d.changed, name)
		}
	}
	if prev != nil {
		for _, name := range prev.names {
			if next.byName[name] == nil {
				d.removed = append(d.removed, name)
			}
		}
	}
	return d
}

// same reports whether nothing that is served differs from the view before.
func (v *view) same() bool {
	for _, d := range v.deltas {
		if len(d.changed)+len(d.removed) > 0 {
			return false
		}
	}
	return v.generation > 1
}

// table is nil for types that are not served.
func (v *view) table(url string) *table {
	if url == xds.TypeWorkload {
		v.onlyWorkloads.Do(v.unwrapWorkloads)
		return v.workloads
	}
	return v.tables[url]
}

func (v *view) unwrapWorkloads() {
	all := v.tables[xds.TypeAddress]
	t := &table{byName: make(map[string]*resource, len(v.snapshot.Workloads))}
	for _, w := range v.snapshot.Workloads {
		if r := all.byName[w.UID]; r != nil {
			// An Address holds the Workload as a field of bytes.
			_, _, n := protowire.ConsumeTag(r.value)
			inner, _ := protowire.ConsumeBytes(r.value[max(n, 0):])
			t.byName[r.name] = &resource{name: r.name, version: r.version, value: inner}
			t.names = append(t.names, r.name)
		}
	}
	v.workloads = t
}

// lookup finds what a name of the wire stands for: a resource's own name; "network/ip" of a workload or a VIP. A service
// brings the workloads behind it, without which nobody could call it.
func (v *view) lookup(url, name string) []string {
	t := v.table(url)
	if url == xds.TypeAuthorization {
		if _, ok := t.version(name); ok {
			return []string{name}
		}
		return nil
	}
	v.index.Do(v.indexAddresses)
	var out []string
	if _, ok := v.tables[xds.TypeAddress].version(name); ok {
		out = append(out, name)
	}
	out = append(out, v.byAddr[name]...)
	for _, n := range slices.Clone(out) {
		out = append(out, v.members[n]...)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return slices.DeleteFunc(out, func(n string) bool { return t.byName[n] == nil })
}

func (v *view) indexAddresses() {
	v.byAddr, v.members = map[string][]string{}, map[string][]string{}
	for _, w := range v.snapshot.Workloads {
		for _, m := range w.Services {
			v.members[m.Key] = append(v.members[m.Key], w.UID)
		}
		if w.NetworkMode == mesh.NetworkHost {
			continue
		}
		for _, a := range w.Addresses {
			alias := mesh.NetworkAddress{Network: w.Network, Addr: a}.String()
			v.byAddr[alias] = append(v.byAddr[alias], w.UID)
		}
	}
	for _, s := range v.snapshot.Services {
		for _, a := range s.VIPs {
			v.byAddr[a.String()] = append(v.byAddr[a.String()], s.Key())
		}
	}
}
