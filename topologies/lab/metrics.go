// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Sample is one series at one moment.
type Sample struct {
	Name   string
	Labels map[string]string
	Value  float64
}

// String is the series as Prometheus prints it.
func (s Sample) String() string {
	var b strings.Builder
	b.WriteString(s.Name + "{")
	for i, k := range slices.Sorted(maps.Keys(s.Labels)) {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s=%q", k, s.Labels[k])
	}
	b.WriteString("} " + strconv.FormatFloat(s.Value, 'g', -1, 64))
	return b.String()
}

func (s Sample) key() string { return Sample{Name: s.Name, Labels: s.Labels}.String() }

// Has reports whether every label given is there with that value.
func (s Sample) Has(name string, labels map[string]string) bool {
	if s.Name != name {
		return false
	}
	for k, v := range labels {
		if s.Labels[k] != v {
			return false
		}
	}
	return true
}

// Samples are a scrape, or the difference of two.
type Samples []Sample

// Scrape reads the counters and gauges of a node's ztunnel; histograms are left out.
func (l *Lab) Scrape(ctx context.Context, node string) (Samples, error) {
	return l.ScrapeDaemon(ctx, node, DaemonZtunnel)
}

// ScrapeDaemon is Scrape of any daemon; the control plane's node is "".
func (l *Lab) ScrapeDaemon(ctx context.Context, node, daemon string) (Samples, error) {
	text, err := l.ReadPage(ctx, Page{Node: node, Daemon: daemon, Port: MetricsPort(daemon), Path: "/metrics"})
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("scrape %s on %s: %w", daemon, node, err)
	}
	var out Samples
	for name, f := range families {
		for _, m := range f.GetMetric() {
			if v, ok := value(f.GetType(), m); ok {
				out = append(out, Sample{Name: name, Labels: labels(m), Value: v})
			}
		}
	}
	return out, nil
}

func value(t dto.MetricType, m *dto.Metric) (float64, bool) {
	switch t {
	case dto.MetricType_COUNTER:
		return m.GetCounter().GetValue(), true
	case dto.MetricType_GAUGE:
		return m.GetGauge().GetValue(), true
	case dto.MetricType_UNTYPED:
		return m.GetUntyped().GetValue(), true
	default:
		return 0, false
	}
}

func labels(m *dto.Metric) map[string]string {
	out := map[string]string{}
	for _, l := range m.GetLabel() {
		out[l.GetName()] = l.GetValue()
	}
	return out
}

// Since is what changed from before to s, for the names that begin with prefix; series without change are left out.
func (s Samples) Since(before Samples, prefix string) Samples {
	old := map[string]float64{}
	for _, b := range before {
		old[b.key()] = b.Value
	}
	var out Samples
	for _, n := range s {
		if !strings.HasPrefix(n.Name, prefix) {
			continue
		}
		if n.Value -= old[n.key()]; n.Value != 0 {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b Sample) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// Sum adds up the series of a name that have the labels.
func (s Samples) Sum(name string, labels map[string]string) float64 {
	var sum float64
	for _, x := range s {
		if x.Has(name, labels) {
			sum += x.Value
		}
	}
	return sum
}
