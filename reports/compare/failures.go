// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/ambientlab/ambientlab/reports/schema"
)

// WriteFailures writes a paragraph for each scenario that failed: where it is, how it failed in at most so many lines, and
// where its evidence lies. The last line counts them.
func WriteFailures(w io.Writer, d schema.ScenarioResults, lines int) error {
	var b strings.Builder
	failed := 0
	for _, s := range d.Scenarios {
		if s.State != schema.Failed {
			continue
		}
		failed++
		fmt.Fprintf(&b, "%s [%s]\n%s\n", s.Text, strings.Join(s.IDs, ", "), s.Location)
		reason := strings.Split(strings.TrimSpace(s.Reason), "\n")
		for _, line := range reason[:min(lines, len(reason))] {
			b.WriteString("    " + line + "\n")
		}
		if more := len(reason) - lines; more > 0 {
			fmt.Fprintf(&b, "    and %d lines more\n", more)
		}
		if s.Bundle != "" {
			b.WriteString("evidence: " + s.Bundle + "\n")
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "%s: %d of %d scenarios failed\n", cmp.Or(driver(d), "no lab"), failed, len(d.Scenarios))
	_, err := io.WriteString(w, b.String())
	return err
}
