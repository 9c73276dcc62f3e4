// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/xds"
)

func encoded(t *testing.T, w *mesh.Workload) xds.Resource {
	t.Helper()
	name, value, err := xds.EncodeWorkload(w)
	if err != nil {
		t.Fatal(err)
	}
	return xds.Resource{Name: name, Version: "1", Value: value}
}

// TestStateKeepsTheLastGoodVersion: one bad resource is refused by name, all others apply (design, decision 4).
func TestStateKeepsTheLastGoodVersion(t *testing.T) {
	s := &state{store: catalog.New(), work: new(workCounter)}
	at := func(a string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(a)} }
	one := &mesh.Workload{UID: "one", Name: "one", Namespace: "ns", Addresses: at("10.0.0.1"), Capacity: 1}
	two := &mesh.Workload{UID: "two", Name: "two", Namespace: "ns", Addresses: at("10.0.0.2"), Capacity: 1}
	if bad := s.Update(xds.TypeAddress, []xds.Resource{encoded(t, one)}, nil); len(bad) != 0 {
		t.Fatalf("refused: %+v", bad)
	}
	broken := xds.Resource{Name: "one", Version: "2", Value: []byte{0xff}}
	bad := s.Update(xds.TypeAddress, []xds.Resource{broken, encoded(t, two)}, nil)
	if len(bad) != 1 || bad[0].Name != "one" || bad[0].Err == nil {
		t.Errorf("refused: %+v", bad)
	}
	now := s.store.Load()
	if now.WorkloadByUID("one") == nil || now.WorkloadByUID("two") == nil {
		t.Error("the last good version or the other resource is missing")
	}
	s.Update(xds.TypeAddress, nil, []string{"one"})
	if s.store.Load().WorkloadByUID("one") != nil {
		t.Error("not removed")
	}
	name, value, err := xds.EncodePolicy(&mesh.Policy{Name: "p", Namespace: "ns"})
	if err != nil {
		t.Fatal(err)
	}
	if bad := s.Update(xds.TypeAuthorization, []xds.Resource{{Name: name, Value: value}, {Name: "q", Value: []byte{0xff}}}, nil); len(bad) != 1 || bad[0].Name != "q" {
		t.Errorf("refused: %+v", bad)
	}
	if s.store.Load().Policy("ns/p") == nil {
		t.Error("the policy is missing")
	}
	if bad := s.Update("type.googleapis.com/strange", []xds.Resource{{Name: "x"}}, nil); len(bad) != 1 {
		t.Errorf("an unknown type was accepted: %+v", bad)
	}
}

func TestDocumentReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := &document{Local: Local{Path: path}, store: catalog.New(), work: new(workCounter), log: slog.New(slog.DiscardHandler)}
	if err := d.load(); err == nil {
		t.Error("a missing file was read")
	}
	write(`workloads: [{uid: a, name: a, namespace: ns, workloadIps: [10.0.0.1]}, {uid: b, name: b, namespace: ns, workloadIps: [10.0.0.2]}]`)
	must(t, d.load())
	write(`workloads: [{uid: b, name: b, namespace: ns, workloadIps: [10.0.0.3]}]
policies: [{name: p, namespace: ns, scope: Namespace, action: Deny, rules: []}]`)
	must(t, d.load())
	now := d.store.Load()
	if now.WorkloadByUID("a") != nil {
		t.Error("what left the document is still known")
	}
	if w := now.WorkloadByAddr("", netip.MustParseAddr("10.0.0.3")); w == nil || w.UID != "b" {
		t.Errorf("what changed in the document: %v", w)
	}
	write(`workloads: [{nonsense: true}]`)
	if err := d.load(); err == nil {
		t.Error("nonsense was read")
	}
	if d.store.Load() != now {
		t.Error("a bad document changed something")
	}
	write(`workloads: []`)
	must(t, d.load())
	if w, _, p := d.store.Load().Len(); w != 0 || p != 0 {
		t.Errorf("%d workloads, %d policies are left", w, p)
	}
}
