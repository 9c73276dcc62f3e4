// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/reports/schema"
)

func TestWriteFailures(t *testing.T) {
	long := "expected a call, but:\n  - it failed\n  - nobody logged it\n  - nobody counted it"
	tests := map[string]struct {
		doc  schema.ScenarioResults
		want string
	}{
		"one of two": {
			schema.ScenarioResults{Labs: []schema.Lab{{Driver: "kind"}}, Scenarios: []schema.Scenario{
				{IDs: []string{"TR-01"}, Text: "calls", State: schema.Passed},
				{IDs: []string{"TR-02", "TR-03"}, Text: "fails", State: schema.Failed, Location: "scenarios/a.go:7", Reason: long, Bundle: "out/fails"},
			}},
			"fails [TR-02, TR-03]\nscenarios/a.go:7\n    expected a call, but:\n      - it failed\n    and 2 lines more\nevidence: out/fails\n\n" +
				"kind: 1 of 2 scenarios failed\n",
		},
		"before any lab stood": {
			schema.ScenarioResults{Scenarios: []schema.Scenario{{Text: "[BeforeSuite]", State: schema.Failed, Location: "scenarios/b.go:1", Reason: "no image\n"}}},
			"[BeforeSuite] []\nscenarios/b.go:1\n    no image\n\nno lab: 1 of 1 scenarios failed\n",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := WriteFailures(&b, tt.doc, 2); err != nil {
				t.Fatal(err)
			}
			if b.String() != tt.want {
				t.Errorf("got\n%s\nwant\n%s", b.String(), tt.want)
			}
		})
	}
}
