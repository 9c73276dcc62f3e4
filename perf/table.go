// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"

	"github.com/ambientlab/ambientlab/reports/schema"
)

// Print writes a document for people: per case and quantity the median of each mode with its spread, and the ratio of
// the ztunnels to bare TLS; then the memory, then the goals.
func Print(w io.Writer, d schema.BenchResults) error {
	e := d.Environment
	fmt.Fprintf(w, "%s, %d CPUs, Linux %s, %s, GOMAXPROCS %d, MTU %d, GSO %s, %s\n", e.CPU, e.CPUs, e.Kernel, e.Go, e.GoMaxProcs, e.MTU, onOff(e.GSO), e.TLSSuite)
	fmt.Fprintf(w, "%d repeats of %g s, modes in turn; median and half of the range\n", d.Settings.Repeats, d.Settings.DurationMillis/1000)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range dataCases {
		printCase(t, d, c)
	}
	printMemory(t, d)
	printGoals(t, d)
	return t.Flush()
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func printCase(t io.Writer, d schema.BenchResults, c Case) {
	head := false
	for _, q := range order {
		cells := make([]string, 0, len(modes)+2)
		byMode := map[Mode]schema.Series{}
		for _, m := range modes {
			s, ok := find(d, c.Name, m, q.name)
			if ok {
				byMode[m] = s
			}
			cells = append(cells, cell(s, ok))
		}
		if len(byMode) == 0 {
			continue
		}
		if !head {
			fmt.Fprintf(t, "\n%s: %s\n\ttcp\trelays\ttls\tztunnel\tztunnel/tls\n", c.Name, c.Text)
			head = true
		}
		ratio := "-"
		if ours, theirs := byMode[Ztunnel], byMode[TLS]; theirs.Median > 0 {
			ratio = fmt.Sprintf("%.2f", ours.Median/theirs.Median)
		}
		fmt.Fprintf(t, "  %s, %s\t%s\t%s\n", q.name, q.unit, strings.Join(cells, "\t"), ratio)
	}
}

func find(d schema.BenchResults, name string, m Mode, metric string) (schema.Series, bool) {
	for _, s := range d.Series {
		if s.Case == name && s.Mode == string(m) && s.Metric == metric {
			return s, true
		}
	}
	return schema.Series{}, false
}

func cell(s schema.Series, ok bool) string {
	if !ok {
		return "-"
	}
	spread := 0.0
	if s.Median > 0 {
		spread = (s.Max - s.Min) / 2 / s.Median * 100
	}
	return fmt.Sprintf("%s ±%.0f%%", figures(s.Median), spread)
}

// figures shows three significant digits.
func figures(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return fmt.Sprintf("%.*f", digits, v)
}

func printMemory(t io.Writer, d schema.BenchResults) {
	head := false
	for _, s := range d.Series {
		if s.Case != caseMemory {
			continue
		}
		if !head {
			fmt.Fprintf(t, "\n%s: resident memory of a ztunnel\n", caseMemory)
			head = true
		}
		fmt.Fprintf(t, "  %s\t%s %s\n", s.Metric, figures(s.Median), s.Unit)
	}
}

func printGoals(t io.Writer, d schema.BenchResults) {
	if len(d.Goals) == 0 {
		return
	}
	fmt.Fprintf(t, "\ngoals\twant\tgot\tof\t\n")
	for _, g := range d.Goals {
		sign, verdict := "≤", "met"
		if g.Better == schema.Higher {
			sign = "≥"
		}
		if !g.Met {
			verdict = "missed"
		}
		fmt.Fprintf(t, "  %s\t%s %s %s\t%s\t%s to %s\t%s\n", g.Name, sign, figures(g.Want), g.Unit, figures(g.Got), figures(g.Min), figures(g.Max), verdict)
	}
}
