// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"maps"
	"os"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/world"
)

// upstreamLabels is a list of upstream's metrics with their labels, written down by hand. Tests run in their package's
// folder.
const upstreamLabels = "../dataplane/telemetry/testdata/labels.txt"

// asUpstream compares every metric that the ztunnels expose now with upstream's list. That Prometheus' parser reads them is
// what Scrape needs.
func asUpstream(ctx SpecContext) {
	GinkgoHelper()
	text, err := os.ReadFile(upstreamLabels)
	Expect(err).NotTo(HaveOccurred())
	want := map[string]string{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] != "#" {
			want[f[0]] = strings.Join(f[2:], " ")
		}
	}
	seen := map[string]bool{}
	for _, node := range w.Nodes() {
		samples, err := w.Scrape(ctx, node)
		Expect(err).NotTo(HaveOccurred())
		for _, s := range samples {
			if !strings.HasPrefix(s.Name, "istio_") && !strings.HasPrefix(s.Name, "workload_manager_") {
				continue
			}
			Expect(want).To(HaveKeyWithValue(s.Name, strings.Join(slices.Sorted(maps.Keys(s.Labels)), " ")), "on %s", node)
			seen[s.Name] = true
		}
	}
	Expect(seen).To(HaveKey(world.Sent), "control: there was something to compare")
}
