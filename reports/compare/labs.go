// SPDX-License-Identifier: Apache-2.0

// Package compare holds pure functions of result documents.
package compare

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/reports/schema"
)

// Labs is the same list of scenarios on several labs.
type Labs struct {
	Names []string `json:"labs"` // of the drivers, in the order of the documents
	Rows  []LabRow `json:"scenarios"`
}

// LabRow is one scenario on each of the labs.
type LabRow struct {
	IDs      []string  `json:"ids"` // of the catalogue
	Text     string    `json:"text"`
	Outcomes []Outcome `json:"outcomes"` // in the order of Names
}

// Outcome is what became of a scenario on a lab. State Missing says that the document has no such scenario.
type Outcome struct {
	State  schema.State `json:"state"`
	Reason string       `json:"reason,omitempty"`
}

// OfLabs puts documents side by side, by the scenarios' ids and text. A document is of the lab that its first lab's driver names.
func OfLabs(docs []schema.ScenarioResults) Labs {
	var l Labs
	rows := map[string]int{}
	for i, d := range docs {
		l.Names = append(l.Names, cmp.Or(driver(d), fmt.Sprintf("document %d", i+1)))
		for _, s := range d.Scenarios {
			key := strings.Join(s.IDs, " ") + "\x00" + s.Text
			at, ok := rows[key]
			if !ok {
				at = len(l.Rows)
				rows[key] = at
				l.Rows = append(l.Rows, LabRow{IDs: s.IDs, Text: s.Text, Outcomes: missing(len(docs))})
			}
			l.Rows[at].Outcomes[i] = Outcome{State: s.State, Reason: s.Reason}
		}
	}
	slices.SortStableFunc(l.Rows, func(a, b LabRow) int {
		return cmp.Or(slices.Compare(a.IDs, b.IDs), cmp.Compare(a.Text, b.Text))
	})
	return l
}

func driver(d schema.ScenarioResults) string {
	if len(d.Labs) == 0 {
		return ""
	}
	return d.Labs[0].Driver
}

func missing(n int) []Outcome {
	out := make([]Outcome, n)
	for i := range out {
		out[i].State = schema.Missing
	}
	return out
}

// Counts are how many scenarios of the i-th lab ended in each state.
func (l Labs) Counts(i int) map[schema.State]int {
	n := map[schema.State]int{}
	for _, r := range l.Rows {
		n[r.Outcomes[i].State]++
	}
	return n
}

// WriteMarkdown writes a table with a line for each scenario.
func (l Labs) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| id | scenario | " + strings.Join(l.Names, " | ") + " |\n|---|---|" + strings.Repeat("---|", len(l.Names)) + "\n")
	for _, r := range l.Rows {
		fmt.Fprintf(&b, "| %s | %s |", strings.Join(r.IDs, ", "), cell(r.Text))
		for _, o := range r.Outcomes {
			text := string(o.State)
			if o.Reason != "" {
				text += ": " + firstLine(o.Reason)
			}
			fmt.Fprintf(&b, " %s |", cell(text))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for i, name := range l.Names {
		n := l.Counts(i)
		fmt.Fprintf(&b, "%s: %d passed, %d failed, %d skipped, %d not in the run\n\n", name, n[schema.Passed], n[schema.Failed], n[schema.Skipped], n[schema.Missing])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// cell makes text safe between the bars of a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
