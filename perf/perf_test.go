// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/perf/fortiorun"
	"github.com/ambientlab/ambientlab/perf/pod"
	"github.com/ambientlab/ambientlab/reports/schema"
	"github.com/ambientlab/ambientlab/topologies"
)

func caseOf(t *testing.T, name string) Case {
	t.Helper()
	for _, c := range dataCases {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no case %s", name)
	return Case{}
}

func TestLabTopologyIsGood(t *testing.T) {
	if _, err := topologies.Load(bytes.NewReader(labTopology)); err != nil {
		t.Fatal(err)
	}
}

func TestValues(t *testing.T) {
	b := caseOf(t, caseBulk4).values(sample{result: pod.Result{Seconds: 2, Bytes: 1e9}, proxy: time.Second, total: 2 * time.Second})
	if b[throughput] != 4 || b[perGbit] != 125 || b[totalGbit] != 250 {
		t.Errorf("bulk: %v", b)
	}
	r := caseOf(t, caseMax).values(sample{result: pod.Result{Result: fortiorun.Result{Count: 4000, PerSecond: 2000}}, proxy: time.Second})
	if r[perThousand] != 250 || r[requestRate] != 2000 {
		t.Errorf("requests: %v", r)
	}
	c := caseOf(t, caseConns).values(sample{result: pod.Result{Result: fortiorun.Result{Count: 10, PerSecond: 7}}})
	if c[connectRate] != 7 {
		t.Errorf("connects: %v", c)
	}
}

// TestGoalsCompareWithinRounds: the machine was twice as slow in the second round, for both alike.
func TestGoalsCompareWithinRounds(t *testing.T) {
	b := &bench{series: map[seriesKey]*schema.Series{}}
	for i, speed := range []float64{1, 0.5, 1} {
		b.add(caseBulk1, TLS, throughput, 10*speed)
		b.add(caseBulk1, Ztunnel, throughput, (12+float64(i))*speed)
		b.add(caseConns, TLS, connectRate, 100)
		b.add(caseConns, Ztunnel, connectRate, 200)
	}
	doc := schema.BenchResults{Goals: goals(b)}.Finish()
	got := map[string]schema.Goal{}
	for _, g := range doc.Goals {
		got[g.Name] = g
	}
	if g := got["throughput against bare TLS, 1 flow"]; g.Got != 1.3 || g.Min != 1.2 || g.Max != 1.4 || !g.Met {
		t.Errorf("throughput: %+v", g)
	}
	if g := got["new connections against bare TLS"]; g.Got != 2 || g.Met {
		t.Errorf("connections: %+v", g)
	}
	if len(got) != 2 {
		t.Errorf("goals about what was not measured: %+v", got)
	}
}

func TestPrint(t *testing.T) {
	b := &bench{series: map[seriesKey]*schema.Series{}}
	c := caseOf(t, caseBulk1)
	for _, m := range modes {
		b.note(c, m, sample{result: pod.Result{Seconds: 1, Bytes: 1e9}, proxy: time.Second, total: time.Second})
	}
	b.sorted([]Case{c})
	b.doc.Goals = goals(b)
	var out strings.Builder
	if err := Print(&out, b.doc.Finish()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"bulk-1: bytes one way on one connection", "8.00 ±0%", "ztunnel/tls", "1.00", "≥ 1.10 ×", "missed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []Options{{}, {Repeats: 1}, {Repeats: 1, Duration: time.Second, Cases: []string{"nonsense"}}} {
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}
