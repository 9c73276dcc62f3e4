// SPDX-License-Identifier: Apache-2.0

package world

import (
	"fmt"
	"slices"
	"strings"

	"github.com/onsi/ginkgo/v2/types"

	"github.com/ambientlab/ambientlab/reports/schema"
)

// Expected are the ids of the catalogue that the scenarios cover: the result document has a line for each.
var Expected = expand(
	"TR 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 18 19",
	"ID 01 02 03 04 05 06 07 08 10 11",
	"P4 01 02 03 04 05 06 07 08 09 10",
	"DN 01 02 03 04 05",
	"OB 01 02 03 04 05 06",
	"CN 03 05 06 08 09",
	"LC 01 02 03 04 05 06 08 09 10 11 12 13 14",
	"FI 01 02 03 04 05 06 07 08",
	"SE 01 02 03 04 05 07 08",
)

func expand(rows ...string) (ids []string) {
	for _, row := range rows {
		f := strings.Fields(row)
		for _, n := range f[1:] {
			ids = append(ids, f[0]+"-"+n)
		}
	}
	return ids
}

// Missing lists the expected ids that no scenario has as a label.
func Missing(specs types.SpecReports) []string {
	have := map[string]bool{}
	for _, s := range specs {
		for _, l := range s.Labels() {
			have[l] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(Expected), func(id string) bool { return have[id] })
}

// catalogue says for each expected id what became of its scenarios.
func catalogue(specs types.SpecReports) []schema.CatalogueID {
	by := map[string]*schema.CatalogueID{}
	var out []schema.CatalogueID
	for _, id := range Expected {
		out = append(out, schema.CatalogueID{ID: id, State: schema.Missing, Reason: "no scenario has this id"})
	}
	for i := range out {
		by[out[i].ID] = &out[i]
	}
	for _, s := range specs {
		if s.LeafNodeType != types.NodeTypeIt {
			continue
		}
		for _, l := range s.Labels() {
			if id := by[l]; id != nil {
				id.Scenarios++
				merge(id, s)
			}
		}
	}
	return out
}

// merge lets the worst that is known win, of what was run; what was not says why.
func merge(id *schema.CatalogueID, s types.SpecReport) {
	state, reason := schema.Skipped, "not selected in this run"
	if selected(s) {
		sc := scenario(s)
		state, reason = sc.State, sc.Reason
	}
	rank := map[schema.State]int{schema.Missing: 0, schema.Skipped: 1, schema.Passed: 2, schema.Failed: 3}
	if rank[state] > rank[id.State] {
		id.State, id.Reason = state, reason
	}
	if state == schema.Skipped && id.State == schema.Passed {
		id.Reason = fmt.Sprintf("in part: %q was skipped: %s", s.LeafNodeText, reason)
	}
}
