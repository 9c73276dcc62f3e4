// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

const many = 100_000

func BenchmarkApplyOne(b *testing.B) {
	s := storeOf(bigCatalog(many))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		w := bigWorkload(i*7919%many, many)
		b.StartTimer()
		s.Apply(Delta{Workloads: []*mesh.Workload{w}})
	}
}

func BenchmarkLoad(b *testing.B) {
	d := bigCatalog(many)
	b.ReportAllocs()
	for b.Loop() {
		storeOf(d)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/many, "ns/workload")
}

// BenchmarkMemory prints what a workload costs at rest, with its share of services and indices.
func BenchmarkMemory(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		s := storeOf(bigCatalog(many))
		after := heap()
		b.ReportMetric(float64(after-before)/many, "B/workload")
		b.ReportMetric(float64(s.intern.floor+len(s.intern.m)), "strings")
		runtime.KeepAlive(s)
	}
}

func BenchmarkLookup(b *testing.B) {
	s := storeOf(bigCatalog(many)).Load()
	w := bigWorkload(4711, many)
	b.Run("uid", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.WorkloadByUID(w.UID)
		}
	})
	b.Run("address", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.WorkloadByAddr("", w.Addresses[0])
		}
	})
	b.Run("vip", func(b *testing.B) {
		a := addr("10.96.1.1")
		b.ReportAllocs()
		for b.Loop() {
			s.ServiceByVIP("", a, "ns-1")
		}
	})
	b.Run("policies", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.PolicySet(w)
		}
	})
}

// TestLookupDoesNotAllocate: among 100 000 workloads.
func TestLookupDoesNotAllocate(t *testing.T) {
	d, w := bigCatalog(many), bigWorkload(4711, many)
	own := namespacePolicy(1)
	own.Namespace = w.Namespace
	d.Policies = []*mesh.Policy{namespacePolicy(0), own}
	s := storeOf(d).Load()
	vip := addr("10.96.1.1")
	resolves := func(dst string) func() bool {
		r := Request{Source: w, Dst: addrPort(dst)}
		return func() bool {
			_, err := s.Resolve(r)
			return err == nil
		}
	}
	for name, look := range map[string]func() bool{
		"uid":      func() bool { return s.WorkloadByUID(w.UID) != nil },
		"name":     func() bool { return s.WorkloadByName(w.Namespace, w.Name, w.ServiceAccount) != nil },
		"address":  func() bool { return s.WorkloadByAddr("", w.Addresses[0]) != nil },
		"vip":      func() bool { return s.ServiceByVIP("", vip, "ns-1") != nil },
		"policies": func() bool { p := s.PolicySet(w)[0].Policies(); return len(p) == 1 && p[0] == own },
		"service":  resolves("10.96.1.1:80"), "pod": resolves("10.128.1.1:8080"), "passthrough": resolves("1.1.1.1:443"),
	} {
		if !look() {
			t.Errorf("%s: found nothing", name)
		}
		if n := testing.AllocsPerRun(100, func() { look() }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

const manyPolicies = 10_000

func namespacePolicy(i int) *mesh.Policy {
	return &mesh.Policy{Namespace: "shop", Name: fmt.Sprintf("policy-%d", i), Scope: mesh.ScopePolicyNamespace, Action: mesh.Deny, Rules: []mesh.Rule{{
		Clauses: []mesh.Clause{{Matches: []mesh.Match{{Principals: []mesh.StringMatch{{Value: fmt.Sprintf("td/ns/shop/sa/app-%d", i)}}}}}}}}}
}

// BenchmarkPolicies applies 10 000 policies at once, and one more to as many.
func BenchmarkPolicies(b *testing.B) {
	all := func() (d Delta) {
		for i := range manyPolicies {
			d.Policies = append(d.Policies, namespacePolicy(i))
		}
		return d
	}
	b.Run("all", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			d := all()
			b.StartTimer()
			New().Apply(d)
		}
	})
	b.Run("one", func(b *testing.B) {
		s := storeOf(all())
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			s.Apply(Delta{Policies: []*mesh.Policy{namespacePolicy(i % manyPolicies)}})
		}
	})
}

func BenchmarkResolve(b *testing.B) {
	s := storeOf(bigCatalog(many)).Load()
	big := storeOf(func() Delta {
		d := bigCatalog(10)
		for i := range 5000 {
			w := bigWorkload(i, many)
			w.Services = []mesh.Membership{{Key: d.Services[0].Key()}}
			d.Workloads = append(d.Workloads, w)
		}
		return d
	}()).Load()
	for _, bb := range []struct {
		name string
		s    *Snapshot
		dst  string
	}{
		{"service/endpoints=10", s, "10.96.1.1:80"},
		{"service/endpoints=5000", big, "10.96.0.0:80"},
		{"pod", s, "10.128.1.1:8080"},
		{"passthrough", s, "1.1.1.1:443"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			r := Request{Source: bigWorkload(1, many), Dst: addrPort(bb.dst)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bb.s.Resolve(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
