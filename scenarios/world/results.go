// SPDX-License-Identifier: Apache-2.0

package world

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"

	"github.com/ambientlab/ambientlab/reports/schema"
)

// catalogueID is what a label that names a scenario of the catalogue looks like.
var catalogueID = regexp.MustCompile(`^[A-Z][A-Z0-9]-[0-9]{2}$`)

// WriteResults writes results.json into the folder for evidence, beside Ginkgo's junit.xml, and says where on stdout.
func WriteResults(report types.Report) error {
	doc := schema.ScenarioResults{
		Started: report.StartTime, Finished: report.EndTime, Seed: report.SuiteConfig.RandomSeed, Environment: environment(),
	}
	for _, s := range report.SpecReports {
		doc.Labs = append(doc.Labs, entries[schema.Lab](s, labEntry)...)
		if selected(s) {
			doc.Scenarios = append(doc.Scenarios, scenario(s))
		}
	}
	doc.Catalogue = catalogue(report.SpecReports)
	var b bytes.Buffer
	if err := doc.Encode(&b); err != nil {
		return err
	}
	path := filepath.Join(settings.Out, "results.json")
	if err := errors.Join(os.MkdirAll(settings.Out, 0o755), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	for _, s := range doc.Scenarios {
		for _, f := range s.Findings {
			fmt.Printf("\nfinding (%s): %s", strings.Join(s.IDs, ", "), f)
		}
	}
	fmt.Printf("\nresults: %s\n", path)
	return nil
}

// Entries of a scenario's report, in which it leaves what the results need. A variable would not do: in a parallel run the
// process that writes the results ran only some of the scenarios.
const (
	findingEntry = "finding" // string
	labEntry     = "lab"     // schema.Lab: one that was taken down
	bundleEntry  = "bundle"  // string: the directory of a failure's evidence
)

// entries are the values that a report has under a name.
func entries[T any](s types.SpecReport, name string) (values []T) {
	for _, e := range s.ReportEntries {
		if e.Name != name {
			continue
		}
		var v T
		if raw, ok := e.GetRawValue().(T); ok {
			v = raw
		} else if err := json.Unmarshal([]byte(e.Value.AsJSON), &v); err != nil { // of another process
			continue
		}
		values = append(values, v)
	}
	return values
}

// Finding notes in the results what a reader must know although the scenario passes.
func Finding(format string, args ...any) {
	ginkgo.AddReportEntry(findingEntry, fmt.Sprintf(format, args...), ginkgo.ReportEntryVisibilityNever)
}

// selected: a scenario that FOCUS or LABELS leave out is not a skip: nobody asked for it. What comes before the scenarios and after
// them is none, but a run in which it fails has failed.
func selected(s types.SpecReport) bool {
	if s.LeafNodeType != types.NodeTypeIt {
		return s.State.Is(types.SpecStateFailureStates)
	}
	return s.State != types.SpecStateSkipped || s.Failure.Message != ""
}

func scenario(s types.SpecReport) schema.Scenario {
	out := schema.Scenario{
		Text: text(s), Labels: s.Labels(), DurationMillis: millis(s.RunTime), Location: location(s), IDs: []string{},
	}
	out.Findings = entries[string](s, findingEntry)
	for _, l := range out.Labels {
		if catalogueID.MatchString(l) {
			out.IDs = append(out.IDs, l)
		}
	}
	switch s.State {
	case types.SpecStatePassed:
		out.State = schema.Passed
	case types.SpecStateSkipped, types.SpecStatePending:
		out.State, out.Reason = schema.Skipped, s.Failure.Message
	default:
		out.State, out.Reason = schema.Failed, s.Failure.Message
		if dirs := entries[string](s, bundleEntry); len(dirs) > 0 {
			out.Bundle = dirs[0]
		}
	}
	return out
}

func text(s types.SpecReport) string {
	if s.LeafNodeType != types.NodeTypeIt {
		return fmt.Sprintf("[%s]", s.LeafNodeType)
	}
	return s.FullText()
}

// location is relative to the repository, so that documents of different machines can be compared.
func location(s types.SpecReport) string {
	file := s.LeafNodeLocation.FileName
	if i := strings.LastIndex(file, "/scenarios/"); i >= 0 {
		file = file[i+1:]
	}
	return fmt.Sprintf("%s:%d", file, s.LeafNodeLocation.LineNumber)
}

func environment() schema.Environment {
	e := schema.Environment{
		OS: runtime.GOOS, Arch: runtime.GOARCH, Go: runtime.Version(), CPUs: runtime.NumCPU(), Root: os.Getuid() == 0,
		Revision: settings.Revision,
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		e.Kernel = strings.TrimSpace(string(b))
	}
	return e
}
