// SPDX-License-Identifier: Apache-2.0

package world

import (
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

func TestMissing(t *testing.T) {
	count := func(name, reporter string) Sample {
		return Sample{Name: name, Labels: map[string]string{"reporter": reporter}, Value: 1}
	}
	entry := &telemetry.Entry{}
	tests := map[string]struct {
		o    Observation
		want bool
	}{
		"nobody took part":                 {Observation{}, false},
		"opened and not closed":            {Observation{Inbound: entry, Metrics: Samples{count(Opened, "destination")}}, true},
		"closed and not logged":            {Observation{Metrics: Samples{count(Opened, "destination"), count(Closed, "destination")}}, true},
		"closed and logged":                {Observation{Inbound: entry, Metrics: Samples{count(Opened, "destination"), count(Closed, "destination")}}, false},
		"failed and logged":                {Observation{Inbound: entry, Metrics: Samples{count(Failed, "destination")}}, false},
		"a failure logged and not counted": {Observation{Inbound: entry}, true},
		"counted by the other side alone":  {Observation{Inbound: entry, Outbound: entry, Metrics: Samples{count(Failed, "source")}}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.o.missing(); (err != nil) != tt.want {
				t.Errorf("missing() = %v, want an error: %v", err, tt.want)
			}
		})
	}
}
