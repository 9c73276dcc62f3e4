// SPDX-License-Identifier: Apache-2.0

package schema

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestADocumentSurvivesARoundTripAndCountsItself(t *testing.T) {
	in := ScenarioResults{
		Started: time.Unix(1, 0).UTC(), Finished: time.Unix(2, 0).UTC(), Seed: 7,
		Labs: []Lab{{Driver: "netns", Topology: "two-pods", Nodes: 1, Pods: 2, BootMillis: 12.5}},
		Scenarios: []Scenario{
			{IDs: []string{"TR-01"}, State: Passed}, {IDs: []string{"TR-02"}, State: Skipped, Reason: "no IPv6"},
			{IDs: []string{"TR-03"}, State: Failed, Bundle: "out/1"},
		},
	}
	var b bytes.Buffer
	if err := in.Encode(&b); err != nil {
		t.Fatal(err)
	}
	out, err := Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	want := in
	want.APIVersion, want.Kind = Version, KindScenario
	want.Summary = Summary{Total: 3, Passed: 1, Failed: 1, Skipped: 1}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
}

func TestAnotherVersionIsRefused(t *testing.T) {
	_, err := Decode(strings.NewReader(`{"apiVersion":"reports.ambientlab.dev/v9","kind":"ScenarioResults"}`))
	if !errors.Is(err, ErrVersion) {
		t.Errorf("got %v, want ErrVersion", err)
	}
	if _, err := Decode(strings.NewReader(`{"colour":"red"}`)); err == nil {
		t.Error("an unknown field was accepted")
	}
}
