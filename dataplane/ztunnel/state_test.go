// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
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

// TestStateTakesNothingUnderAnotherName: removals come by name, and must remove what came.
func TestStateTakesNothingUnderAnotherName(t *testing.T) {
	s := &state{store: catalog.New(), work: new(workCounter)}
	w := encoded(t, &mesh.Workload{UID: "one", Name: "one", Namespace: "ns", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Capacity: 1})
	_, value, err := xds.EncodeService(&mesh.Service{Name: "svc", Namespace: "ns", Hostname: "svc.ns"})
	if err != nil {
		t.Fatal(err)
	}
	_, policy, err := xds.EncodePolicy(&mesh.Policy{Name: "p", Namespace: "ns"})
	if err != nil {
		t.Fatal(err)
	}
	addresses := []xds.Resource{{Name: "two", Value: w.Value}, {Name: "ns/other", Value: value}, {Name: "one", Value: value}}
	if bad := s.Update(xds.TypeAddress, addresses, nil); len(bad) != 3 || bad[0].Name != "two" || !strings.Contains(bad[0].Err.Error(), `"one"`) {
		t.Errorf("refused: %+v", bad)
	}
	if bad := s.Update(xds.TypeAuthorization, []xds.Resource{{Name: "ns/q", Value: policy}}, nil); len(bad) != 1 {
		t.Errorf("refused: %+v", bad)
	}
	if workloads, services, policies := s.store.Load().Len(); workloads+services+policies != 0 {
		t.Error("something was taken")
	}
	if bad := s.Update(xds.TypeAddress, []xds.Resource{w}, nil); len(bad) != 0 {
		t.Errorf("control: refused: %+v", bad)
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
	load := func() {
		t.Helper()
		if applied, err := d.load(); !applied || err != nil {
			t.Errorf("applied %v, %v", applied, err)
		}
	}
	if applied, err := d.load(); applied || err == nil {
		t.Error("a missing file was read")
	}
	write(`workloads: [{uid: a, name: a, namespace: ns, workloadIps: [10.0.0.1]}, {uid: b, name: b, namespace: ns, workloadIps: [10.0.0.2]}]`)
	load()
	write(`workloads: [{uid: b, name: b, namespace: ns, workloadIps: [10.0.0.3]}]
policies: [{name: p, namespace: ns, scope: Namespace, action: Deny, rules: []}]`)
	load()
	now := d.store.Load()
	if now.WorkloadByUID("a") != nil {
		t.Error("what left the document is still known")
	}
	if w := now.WorkloadByAddr("", netip.MustParseAddr("10.0.0.3")); w == nil || w.UID != "b" {
		t.Errorf("what changed in the document: %v", w)
	}
	write(`workloads: [{nonsense: true}]`)
	if applied, err := d.load(); applied || err == nil {
		t.Error("nonsense was read")
	}
	if d.store.Load() != now {
		t.Error("a bad document changed something")
	}
	write(`workloads: []`)
	load()
	if w, _, p := d.store.Load().Len(); w != 0 || p != 0 {
		t.Errorf("%d workloads, %d policies are left", w, p)
	}
}

// TestDocumentKeepsTheLastGoodVersion is decision 4 for files: the object is what is good or bad, not the document.
func TestDocumentKeepsTheLastGoodVersion(t *testing.T) {
	var log strings.Builder
	d := &document{store: catalog.New(), work: new(workCounter), log: slog.New(slog.NewTextHandler(&log, nil))}
	load := func(document string, problems ...string) *catalog.Snapshot {
		t.Helper()
		d.Inline = []byte(document)
		applied, err := d.load()
		if !applied || (err != nil) != (len(problems) > 0) {
			t.Errorf("applied %v, %v", applied, err)
		}
		log.Reset()
		d.report(applied, err)
		for _, p := range problems {
			if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), p) {
				t.Errorf("no word about %s in %q", p, log.String())
			}
		}
		return d.store.Load()
	}
	const a, b = "- {uid: a, name: a, namespace: ns, workloadIps: [10.0.0.1]}\n", "- {uid: b, name: b, namespace: ns, workloadIps: [10.0.0.2]}\n"
	const deny = "policies:\n- {name: p, namespace: ns, scope: Namespace, action: Deny, rules: []}\n"

	// The first version already has a bad object: the good ones are served.
	now := load("workloads:\n"+a+"- {uid: b, namespace: ns, workloadIps: [nowhere]}\n"+deny, "workloads[1].workloadIps[0]")
	if now.WorkloadByUID("a") == nil || now.WorkloadByUID("b") != nil || now.Policy("ns/p") == nil {
		t.Error("the good objects of the first version are not all there")
	}
	load("workloads:\n" + a + b + deny)
	now = load("workloads:\n- {uid: b, namespace: ns, workloadIps: [nowhere]}\npolicies:\n"+
		"- {name: p, namespace: ns, scope: Everywhere, action: Deny}\n- {name: q, namespace: ns, scope: Namespace, action: Allow, rules: []}\n",
		"workloads[0].workloadIps[0]", "policies[0].scope")
	if now.WorkloadByUID("a") != nil {
		t.Error("a left the document and is still known")
	}
	if now.WorkloadByUID("b") == nil || now.Policy("ns/p") == nil {
		t.Error("a bad version took the good one away")
	}
	if now.Policy("ns/q") == nil {
		t.Error("a good object beside bad ones was not taken over")
	}
	// Whose version this is cannot be told: none of its kind is taken away, and others are.
	now = load("workloads:\n"+a+"policies:\n- {action: Deny}\n", "policies[0].name")
	if now.Policy("ns/p") == nil || now.Policy("ns/q") == nil || now.WorkloadByUID("b") != nil {
		t.Error("want both policies kept, and b gone")
	}
	now = load("workloads:\n" + a)
	if now.Policy("ns/p") != nil || now.Policy("ns/q") != nil {
		t.Error("what was kept is not removed with the next good version")
	}
}
