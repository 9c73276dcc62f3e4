// SPDX-License-Identifier: Apache-2.0

package world

import (
	"slices"
	"testing"

	"github.com/onsi/ginkgo/v2/types"

	"github.com/ambientlab/ambientlab/reports/schema"
)

func spec(state types.SpecState, message string, labels ...string) types.SpecReport {
	return types.SpecReport{
		LeafNodeType: types.NodeTypeIt, LeafNodeText: "it", LeafNodeLabels: labels, State: state, Failure: types.Failure{Message: message},
	}
}

func TestCatalogueSaysWhatBecameOfEachID(t *testing.T) {
	specs := types.SpecReports{
		spec(types.SpecStatePassed, "", "TR-01", "TR-02", "TR-03"), spec(types.SpecStateFailed, "no answer", "TR-02"),
		spec(types.SpecStateSkipped, "needs root", "TR-03", "TR-04"), spec(types.SpecStateSkipped, "", "TR-05"),
	}
	got := map[string]schema.CatalogueID{}
	for _, c := range catalogue(specs) {
		got[c.ID] = c
	}
	if len(got) != len(Expected) {
		t.Errorf("%d ids of %d", len(got), len(Expected))
	}
	for id, want := range map[string]schema.CatalogueID{
		"TR-01": {ID: "TR-01", State: schema.Passed, Scenarios: 1},
		"TR-02": {ID: "TR-02", State: schema.Failed, Scenarios: 2, Reason: "no answer"},
		"TR-03": {ID: "TR-03", State: schema.Passed, Scenarios: 2, Reason: `in part: "it" was skipped: needs root`},
		"TR-04": {ID: "TR-04", State: schema.Skipped, Scenarios: 1, Reason: "needs root"},
		"TR-05": {ID: "TR-05", State: schema.Skipped, Scenarios: 1, Reason: "not selected in this run"},
		"TR-06": {ID: "TR-06", State: schema.Missing, Reason: "no scenario has this id"},
	} {
		if got[id] != want {
			t.Errorf("%+v, want %+v", got[id], want)
		}
	}
	if missing := Missing(specs); slices.Contains(missing, "TR-01") || !slices.Contains(missing, "TR-06") {
		t.Errorf("missing: %v", missing)
	}
}
