// SPDX-License-Identifier: Apache-2.0

package perf

import "github.com/ambientlab/ambientlab/reports/schema"

// goal compares ztunnels with what they are to be measured by.
type goal struct {
	name    string
	of      string // case
	metric  metric
	against Mode
	want    float64
}

// The goals of the data path: batching has to pay for framing, and a connection that needs no handshake for itself.
var ratios = []goal{
	{"throughput against bare TLS, 1 flow", caseBulk1, throughput, TLS, 1.1},
	{"throughput against bare TLS, 4 flows", caseBulk4, throughput, TLS, 1.1},
	{"throughput against bare TLS, 16 flows", caseBulk16, throughput, TLS, 1.1},
	{"proxy CPU of a request against bare TLS, fixed rate", caseRate, perThousand, TLS, 1.1},
	{"proxy CPU of a request against bare TLS, maximum rate", caseMax, perThousand, TLS, 1.1},
	{"latency p50 against bare TLS, fixed rate", caseRate, latencyP50, TLS, 1},
	{"latency p50 against bare TLS, maximum rate", caseMax, latencyP50, TLS, 1},
	{"new connections against bare TLS", caseConns, connectRate, TLS, 3},
}

// goals compares the samples of one round with each other, and takes the median of the ratios.
func goals(b *bench) []schema.Goal {
	var out []schema.Goal
	for _, g := range ratios {
		ours, theirs := b.series[seriesKey{g.of, Ztunnel, g.metric.name}], b.series[seriesKey{g.of, g.against, g.metric.name}]
		if ours == nil || theirs == nil {
			continue
		}
		var each []float64
		for i, v := range ours.Samples {
			if i < len(theirs.Samples) && theirs.Samples[i] > 0 {
				each = append(each, v/theirs.Samples[i])
			}
		}
		goal := schema.Goal{Name: g.name, Unit: "×", Better: g.metric.better, Want: g.want}
		goal.Got, goal.Min, goal.Max = schema.Summarise(each)
		out = append(out, goal)
	}
	return append(out, memoryGoals(b)...)
}
