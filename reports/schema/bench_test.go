// SPDX-License-Identifier: Apache-2.0

package schema

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBenchRoundTrip(t *testing.T) {
	in := BenchResults{
		Environment: Environment{CPU: "a", GoMaxProcs: 2, MTU: 1500, GSO: true},
		Series:      []Series{{Case: "bulk-1", Mode: "ztunnel", Metric: "throughput", Unit: "Gbit/s", Better: Higher, Samples: []float64{3, 1, 2, 9}}},
		Goals: []Goal{
			{Name: "high", Better: Higher, Want: 1.1, Got: 1.2}, {Name: "too low", Better: Higher, Want: 1.1, Got: 1},
			{Name: "low", Better: Lower, Want: 1.1, Got: 1}, {Name: "too high", Better: Lower, Want: 1.1, Got: 1.2},
		},
	}
	var b bytes.Buffer
	if err := in.Encode(&b); err != nil {
		t.Fatal(err)
	}
	out, err := DecodeBench(&b)
	if err != nil {
		t.Fatal(err)
	}
	if s := out.Series[0]; s.Median != 2.5 || s.Min != 1 || s.Max != 9 {
		t.Errorf("summary %+v", s)
	}
	var met []bool
	for _, g := range out.Goals {
		met = append(met, g.Met)
	}
	if d := cmp.Diff([]bool{true, false, true, false}, met); d != "" {
		t.Errorf("goals met (-want +got):\n%s", d)
	}
	if d := cmp.Diff(in.Finish(), out); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if in.Series[0].Median != 0 {
		t.Error("Encode wrote to its caller's document")
	}
}

func TestBenchRefusesOtherDocuments(t *testing.T) {
	var b bytes.Buffer
	if err := (ScenarioResults{}).Encode(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeBench(&b); err == nil {
		t.Error("took scenario results for a benchmark's")
	}
	if _, err := DecodeBench(strings.NewReader(`{"apiVersion": "other", "kind": "BenchResults"}`)); !errors.Is(err, ErrVersion) {
		t.Errorf("error %v", err)
	}
}
