// SPDX-License-Identifier: Apache-2.0

package schema

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"
)

// KindBench is the document that measurements write.
const KindBench = "BenchResults"

// BenchResults is what one interleaved run measured: the same cases for every mode, again and again in turn.
type BenchResults struct {
	APIVersion  string        `json:"apiVersion"`
	Kind        string        `json:"kind"`
	Started     time.Time     `json:"started"`
	Finished    time.Time     `json:"finished"`
	Environment Environment   `json:"environment"`
	Settings    BenchSettings `json:"settings"`
	Series      []Series      `json:"series"`
	Goals       []Goal        `json:"goals,omitempty"`
}

// BenchSettings is how a run was made.
type BenchSettings struct {
	Repeats        int      `json:"repeats"`
	DurationMillis float64  `json:"durationMillis"` // of one timed load
	Cases          []string `json:"cases"`
}

// Series is one quantity of one case in one mode, as often as it was measured.
type Series struct {
	Case    string    `json:"case"`
	Mode    string    `json:"mode"`
	Metric  string    `json:"metric"`
	Unit    string    `json:"unit"`
	Better  Direction `json:"better"`
	Samples []float64 `json:"samples"` // in the order of the repeats; those of two modes with one index belong together
	Median  float64   `json:"median"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
}

// Direction says which values of a quantity are good.
type Direction string

// Directions.
const (
	Higher Direction = "higher"
	Lower  Direction = "lower"
)

// Goal is something that the figures should show. Its value is the median over the repeats; Min and Max are its spread.
type Goal struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"` // "×" for a ratio
	Better Direction `json:"better"`
	Want   float64   `json:"want"` // at least, or at most
	Got    float64   `json:"got"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	Met    bool      `json:"met"`
}

// Summarise gives the median and the extremes of samples; zeros if there are none.
func Summarise(samples []float64) (median, least, most float64) {
	if len(samples) == 0 {
		return 0, 0, 0
	}
	s := slices.Sorted(slices.Values(samples))
	mid := len(s) / 2
	median = s[mid]
	if len(s)%2 == 0 {
		median = (s[mid-1] + s[mid]) / 2
	}
	return median, s[0], s[len(s)-1]
}

// Encode writes d as indented JSON, with its version, kind, summaries and verdicts filled in.
func (d BenchResults) Encode(w io.Writer) error {
	d = d.Finish()
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(d)
}

// Finish is d with everything filled in that follows from the rest.
func (d BenchResults) Finish() BenchResults {
	d.APIVersion, d.Kind = Version, KindBench
	d.Series, d.Goals = slices.Clone(d.Series), slices.Clone(d.Goals)
	for i := range d.Series {
		s := &d.Series[i]
		s.Median, s.Min, s.Max = Summarise(s.Samples)
	}
	for i := range d.Goals {
		g := &d.Goals[i]
		g.Met = g.Got <= g.Want
		if g.Better == Higher {
			g.Met = g.Got >= g.Want
		}
	}
	return d
}

// DecodeBench reads a document that Encode wrote; an unknown version or field is an error.
func DecodeBench(r io.Reader) (BenchResults, error) {
	var d BenchResults
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return BenchResults{}, fmt.Errorf("decode results: %w", err)
	}
	if d.APIVersion != Version || d.Kind != KindBench {
		return BenchResults{}, fmt.Errorf("decode results: %w: %s %s, want %s %s", ErrVersion, d.APIVersion, d.Kind, Version, KindBench)
	}
	return d, nil
}
