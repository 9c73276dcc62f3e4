// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"strings"
	"testing"

	"github.com/onsi/ginkgo/v2"

	"github.com/ambientlab/ambientlab/scenarios/world"
)

// Every id of the catalogue that is this far in the plan has a scenario, which passes, or skips with a reason.
func TestEveryCatalogueIDHasAScenario(t *testing.T) {
	if missing := world.Missing(ginkgo.PreviewSpecs("ambientlab scenarios").SpecReports); len(missing) > 0 {
		t.Errorf("no scenario has the label: %s", strings.Join(missing, ", "))
	}
}
