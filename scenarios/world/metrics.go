// SPDX-License-Identifier: Apache-2.0

package world

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Sample is one series at one moment.
type Sample = lab.Sample

// Samples are a scrape, or the difference of two.
type Samples = lab.Samples

// short is a series with the labels that tell connections apart.
func short(s Sample) Sample {
	out := Sample{Name: s.Name, Labels: map[string]string{}, Value: s.Value}
	for _, l := range []string{"reporter", "source_workload", "destination_workload", "destination_service_name", "connection_security_policy", "response_flags"} {
		out.Labels[l] = s.Labels[l]
	}
	return out
}

// tcpSamples are the TCP counters of a ztunnel, by their series as it prints them.
type tcpSamples map[string]Sample

// series remembers what was parsed of the series of a lab: observations look at the counters again and again, of which there
// are thousands, and only values differ.
type series struct {
	mu    sync.Mutex
	known map[string]Sample // guarded by mu; without value; labels are shared, and never written to
}

func newSeries() *series { return &series{known: map[string]Sample{}} }

// scrapeAll reads the TCP counters of every ztunnel, by node.
func (w *World) scrapeAll(ctx context.Context) (map[string]tcpSamples, error) {
	nodes := w.Nodes()
	samples := make([]tcpSamples, len(nodes))
	g, ctx := errgroup.WithContext(ctx)
	for i, node := range nodes {
		g.Go(func() error {
			text, err := w.ReadPage(ctx, lab.Page{Node: node, Daemon: lab.DaemonZtunnel, Port: lab.MetricsPort(lab.DaemonZtunnel), Path: "/metrics"})
			if err != nil {
				return err
			}
			samples[i], err = w.series.parse(text)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := map[string]tcpSamples{}
	for i, node := range nodes {
		all[node] = samples[i]
	}
	return all, nil
}

func (s *series) parse(text []byte) (tcpSamples, error) {
	out := tcpSamples{}
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(line, []byte(tcpNames)) {
			continue
		}
		line = bytes.TrimSpace(line)
		end := bytes.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(string(line[end+1:]), 64)
		if end < 0 || err != nil {
			return nil, fmt.Errorf("parse metrics: %q", line)
		}
		sample, err := s.sample(line[:end])
		if err != nil {
			return nil, err
		}
		sample.Value = value
		out[string(line[:end])] = sample
	}
	return out, nil
}

func (s *series) sample(name []byte) (Sample, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.known[string(name)]; ok {
		return known, nil
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(name) + " 0\n"))
	if err != nil {
		return Sample{}, fmt.Errorf("parse metrics: %w", err)
	}
	for family, f := range families {
		parsed := Sample{Name: family, Labels: map[string]string{}}
		for _, l := range f.GetMetric()[0].GetLabel() {
			parsed.Labels[l.GetName()] = l.GetValue()
		}
		s.known[string(name)] = parsed
		return parsed, nil
	}
	return Sample{}, fmt.Errorf("parse metrics: no series in %q", name)
}

// since is what changed, without series that did not.
func (t tcpSamples) since(before tcpSamples) Samples {
	var out Samples
	for name, s := range t {
		if s.Value -= before[name].Value; s.Value != 0 {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Sample) int { return cmp.Compare(a.String(), b.String()) })
	return out
}

// sum adds up the series of a name.
func (t tcpSamples) sum(name string) float64 {
	sum := 0.0
	for _, s := range t {
		if s.Name == name {
			sum += s.Value
		}
	}
	return sum
}

// open is how many connections were opened and are not closed yet.
func (t tcpSamples) open() float64 { return t.sum(Opened) - t.sum(Closed) }
