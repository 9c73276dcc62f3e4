// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/reports/schema"
)

func TestOfLabs(t *testing.T) {
	doc := func(driver string, scenarios ...schema.Scenario) schema.ScenarioResults {
		return schema.ScenarioResults{Labs: []schema.Lab{{Driver: driver}}, Scenarios: scenarios}
	}
	call := schema.Scenario{IDs: []string{"TR-01"}, Text: "calls a | b", State: schema.Passed}
	probe := schema.Scenario{IDs: []string{"P4-04"}, Text: "probes", State: schema.Skipped, Reason: "kubelet: none\nat all"}
	probed := schema.Scenario{IDs: []string{"P4-04"}, Text: "probes", State: schema.Failed, Reason: "no answer"}
	own := schema.Scenario{IDs: []string{"ZZ-01"}, Text: "only there", State: schema.Passed}
	l := OfLabs([]schema.ScenarioResults{doc("netns", call, probe), doc("kind", own, probed, call)})
	var b strings.Builder
	if err := l.WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	want := `| id | scenario | netns | kind |
|---|---|---|---|
| P4-04 | probes | skipped: kubelet: none | failed: no answer |
| TR-01 | calls a \| b | passed | passed |
| ZZ-01 | only there | missing | passed |

netns: 1 passed, 0 failed, 1 skipped, 1 not in the run

kind: 2 passed, 1 failed, 0 skipped, 0 not in the run

`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
