// SPDX-License-Identifier: Apache-2.0

// Package schema defines the result documents that suites and measurements write and that comparisons and reports read.
// It is data and its JSON form, nothing else; rendering is reports/render's work. A document says its version, so a
// reader can refuse what it does not know; fields are only ever added within a version.
package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Version and the kinds of document that exist in it.
const (
	Version      = "reports.ambientlab.dev/v1alpha1"
	KindScenario = "ScenarioResults"
)

// ErrVersion is returned by Decode for a document of another version or kind.
var ErrVersion = errors.New("unknown document version")

// State is how a scenario ended.
type State string

// The states of a scenario.
const (
	Passed  State = "passed"
	Failed  State = "failed"
	Skipped State = "skipped"
	Missing State = "missing" // of an id: no scenario has it
)

// ScenarioResults is what one run of the scenarios saw.
type ScenarioResults struct {
	APIVersion  string      `json:"apiVersion"`
	Kind        string      `json:"kind"`
	Started     time.Time   `json:"started"`
	Finished    time.Time   `json:"finished"`
	Seed        int64       `json:"seed"` // the order of the scenarios; run again with SEED=
	Environment Environment `json:"environment"`
	Labs        []Lab       `json:"labs"`
	Summary     Summary     `json:"summary"`
	Scenarios   []Scenario  `json:"scenarios"`
	// Catalogue has a line for every id that the scenarios are meant to cover.
	Catalogue []CatalogueID `json:"catalogue,omitempty"`
}

// CatalogueID is what became of one id of the catalogue: failed if one of its scenarios did, passed if one did, else skipped
// or missing.
type CatalogueID struct {
	ID        string `json:"id"`
	State     State  `json:"state"`
	Scenarios int    `json:"scenarios"`        // how many have it
	Reason    string `json:"reason,omitempty"` // why not passed, or what was skipped beside
}

// Environment is what a reader needs in order to judge whether two documents may be compared.
type Environment struct {
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	Kernel   string `json:"kernel"`
	Go       string `json:"go"`
	CPUs     int    `json:"cpus"`
	Root     bool   `json:"root"`
	Revision string `json:"revision,omitempty"` // of the code under test; "" if unknown

	// Only of measurements, where they decide about figures.
	CPU        string `json:"cpu,omitempty"` // the processor's name
	GoMaxProcs int    `json:"goMaxProcs,omitempty"`
	MTU        int    `json:"mtu,omitempty"` // of the pods' links
	GSO        bool   `json:"gso,omitempty"` // segmentation below TCP on them
	TLSSuite   string `json:"tlsSuite,omitempty"`
}

// Lab is one lab that the run brought up.
type Lab struct {
	Driver     string        `json:"driver"`
	CNI        string        `json:"cni,omitempty"` // "" is the driver's own, or what a node image brings
	Topology   string        `json:"topology"`
	Nodes      int           `json:"nodes"`
	Pods       int           `json:"pods"`
	BootMillis float64       `json:"bootMillis"` // from the request to the last pod ready
	DownMillis float64       `json:"downMillis,omitempty"`
	Missing    []MissingItem `json:"missing,omitempty"`
}

// MissingItem is a capability that the lab does not have, and why.
type MissingItem struct {
	Capability string `json:"capability"`
	Reason     string `json:"reason"`
}

// Summary counts the scenarios.
type Summary struct {
	Total   int `json:"total"`
	Passed  int `json:"passed"`
	Failed  int `json:"failed"`
	Skipped int `json:"skipped"`
}

// Scenario is one scenario's outcome.
type Scenario struct {
	IDs            []string `json:"ids"` // of the catalogue, such as TR-01
	Text           string   `json:"text"`
	Labels         []string `json:"labels,omitempty"`
	State          State    `json:"state"`
	DurationMillis float64  `json:"durationMillis"`
	Reason         string   `json:"reason,omitempty"` // why it was skipped, or how it failed
	Location       string   `json:"location,omitempty"`
	Bundle         string   `json:"bundle,omitempty"` // directory of evidence; only of a failure
	// Findings are what a reader must know although the scenario passed: what cannot be prevented, for one.
	Findings []string `json:"findings,omitempty"`
}

// Encode writes d as indented JSON, with its version, kind and summary filled in.
func (d ScenarioResults) Encode(w io.Writer) error {
	d.APIVersion, d.Kind = Version, KindScenario
	d.Summary = d.count()
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(d)
}

func (d ScenarioResults) count() Summary {
	s := Summary{Total: len(d.Scenarios)}
	for _, sc := range d.Scenarios {
		switch sc.State {
		case Passed:
			s.Passed++
		case Failed:
			s.Failed++
		case Skipped:
			s.Skipped++
		}
	}
	return s
}

// Decode reads a document that Encode wrote; an unknown version or field is an error.
func Decode(r io.Reader) (ScenarioResults, error) {
	var d ScenarioResults
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return ScenarioResults{}, fmt.Errorf("decode results: %w", err)
	}
	if d.APIVersion != Version || d.Kind != KindScenario {
		return ScenarioResults{}, fmt.Errorf("decode results: %w: %s %s, want %s %s", ErrVersion, d.APIVersion, d.Kind, Version, KindScenario)
	}
	return d, nil
}
