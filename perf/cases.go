// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"time"

	"github.com/ambientlab/ambientlab/perf/pod"
	"github.com/ambientlab/ambientlab/reports/schema"
)

// Mode is a way from the client to the server.
type Mode string

// The modes, in the order in which a round begins.
const (
	Direct  Mode = "tcp"     // nothing in between
	Relays  Mode = "relays"  // two processes that copy
	TLS     Mode = "tls"     // two processes that copy and encrypt
	Ztunnel Mode = "ztunnel" // two ztunnels
)

var modes = []Mode{Direct, Relays, TLS, Ztunnel}

// Case is a load that is measured in every mode.
type Case struct {
	Name string
	Text string
	load pod.Load
}

// Cases of the data path, by name.
const (
	caseBulk1  = "bulk-1"
	caseBulk4  = "bulk-4"
	caseBulk16 = "bulk-16"
	caseRate   = "rate"
	caseMax    = "max"
	caseConns  = "connect"
	caseMemory = "memory"
)

// Requests are 1 KiB, as in istio's own measurements; a fixed rate is far below what two cores can do.
const (
	requestBytes = 1 << 10
	fixedRate    = 1000
)

var dataCases = []Case{
	bulk(caseBulk1, 1),
	bulk(caseBulk4, 4),
	bulk(caseBulk16, 16),
	{caseRate, fmt.Sprintf("requests of 1 KiB there and back on 4 connections, %d a second", fixedRate),
		pod.Load{Kind: pod.Requests, Connections: 4, Payload: requestBytes, Rate: fixedRate}},
	{caseMax, "the same on 16 connections, as many as go",
		pod.Load{Kind: pod.Requests, Connections: 16, Payload: requestBytes}},
	{caseConns, "connect, 64 bytes there and back, close, as many as go by 8 at a time",
		pod.Load{Kind: pod.Connects, Connections: 8, Payload: 64}},
}

func bulk(name string, flows int) Case {
	text := fmt.Sprintf("bytes one way on %d connections", flows)
	if flows == 1 {
		text = "bytes one way on one connection"
	}
	return Case{name, text, pod.Load{Kind: pod.Bulk, Connections: flows}}
}

// CaseNames are what Options.Cases may name.
func CaseNames() []string {
	var names []string
	for _, c := range dataCases {
		names = append(names, c.Name)
	}
	return append(names, caseMemory)
}

// metric is a quantity of a case.
type metric struct {
	name, unit string
	better     schema.Direction
}

var (
	throughput  = metric{"throughput", "Gbit/s", schema.Higher}
	perGbit     = metric{"proxy CPU per Gbit", "ms", schema.Lower}
	totalGbit   = metric{"total CPU per Gbit", "ms", schema.Lower}
	latencyP50  = metric{"latency p50", "µs", schema.Lower}
	latencyP99  = metric{"latency p99", "µs", schema.Lower}
	requestRate = metric{"requests per second", "/s", schema.Higher}
	connectRate = metric{"connections per second", "/s", schema.Higher}
	perThousand = metric{"proxy CPU per 1000", "ms", schema.Lower}
	totalThou   = metric{"total CPU per 1000", "ms", schema.Lower}
)

// sample is what one timed load showed.
type sample struct {
	result pod.Result
	proxy  time.Duration // CPU of what stands between client and server
	total  time.Duration // and of those two as well
}

// values are the quantities of a case that a sample holds.
func (c Case) values(s sample) map[metric]float64 {
	out := map[metric]float64{}
	per := func(m metric, cpu time.Duration, n float64) {
		if n > 0 {
			out[m] = cpu.Seconds() * 1e3 / n
		}
	}
	if c.load.Kind == pod.Bulk {
		gbit := float64(s.result.Bytes) * 8 / 1e9
		out[throughput] = gbit / s.result.Seconds
		per(perGbit, s.proxy, gbit)
		per(totalGbit, s.total, gbit)
		return out
	}
	thousands := float64(s.result.Count) / 1000
	per(perThousand, s.proxy, thousands)
	per(totalThou, s.total, thousands)
	out[latencyP50], out[latencyP99] = s.result.Latency.P50Micros, s.result.Latency.P99Micros
	switch c.load.Kind {
	case pod.Connects:
		out[connectRate] = s.result.PerSecond
	default:
		out[requestRate] = s.result.PerSecond
	}
	return out
}

// order in which a case's quantities are shown.
var order = []metric{throughput, requestRate, connectRate, latencyP50, latencyP99, perGbit, totalGbit, perThousand, totalThou}
