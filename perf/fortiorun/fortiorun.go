// SPDX-License-Identifier: Apache-2.0

// Package fortiorun is the only door to fortio: it repeats an action at a fixed rate, or as fast as it goes, and says how
// long the repetitions took. What the action is, and what is made of the figures, is the caller's.
// Source: fortio.org/fortio/periodic; reference, "istio/tools perf/benchmark", "fortio facts".
package fortiorun

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"fortio.org/fortio/periodic"
	"fortio.org/fortio/stats"
	"fortio.org/log"
)

// Options say what to repeat and how often. Do must be set.
type Options struct {
	// Do is the action; worker is from 0 to Workers-1, and no two calls of one worker overlap.
	Do      func(ctx context.Context, worker int) error
	Workers int // 0 means 1
	// Rate is the number of actions per second of all workers together, at even distances with some jitter, and never
	// more to catch up; 0 means that each worker begins again at once.
	Rate     float64
	Duration time.Duration
}

// Result is what came of it. Latencies are of the actions that succeeded and of those that did not.
type Result struct {
	Count, Errors int64
	FirstError    string `json:",omitempty"`
	PerSecond     float64
	Latency       Latency
}

// Latency is how long an action took.
type Latency struct {
	MeanMicros, P50Micros, P90Micros, P99Micros, MaxMicros float64
}

// resolution of the histogram: fine enough for loopback, where a round trip takes tens of microseconds.
const resolution = time.Microsecond

// Run repeats o.Do until o.Duration is over or ctx ends, which is an error. Failed actions are counted, and are none.
func Run(ctx context.Context, o Options) (Result, error) {
	log.SetLogLevelQuiet(log.Error)
	var first firstError
	workers := max(o.Workers, 1)
	opts := periodic.RunnerOptions{
		QPS: o.Rate, NumThreads: workers, Duration: o.Duration, Percentiles: []float64{50, 90, 99}, Resolution: resolution.Seconds(),
		Out: io.Discard, Stop: periodic.NewAborter(), Jitter: o.Rate > 0, Uniform: o.Rate > 0, NoCatchUp: true,
	}
	if o.Rate == 0 {
		opts.QPS = -1 // fortio's word for no limit
	}
	abort := opts.Stop
	runner := periodic.NewPeriodicRunner(&opts) // which takes the options over, and empties them
	runner.Options().MakeRunners(action{ctx: ctx, do: o.Do, first: &first})
	stop := context.AfterFunc(ctx, func() { abort.Abort(true) })
	defer stop()
	res := runner.Run()
	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	if res.DurationHistogram == nil || res.DurationHistogram.Count == 0 {
		return Result{}, errors.New("run: nothing was done in time")
	}
	out := Result{Count: res.DurationHistogram.Count, PerSecond: res.ActualQPS, Latency: latency(res.DurationHistogram), FirstError: first.text()}
	if res.ErrorsDurationHistogram != nil {
		out.Errors = res.ErrorsDurationHistogram.Count
	}
	return out, nil
}

func latency(h *stats.HistogramData) Latency {
	const micros = 1e6
	l := Latency{MeanMicros: h.Avg * micros, MaxMicros: h.Max * micros}
	for _, p := range h.Percentiles {
		switch p.Percentile {
		case 50:
			l.P50Micros = p.Value * micros
		case 90:
			l.P90Micros = p.Value * micros
		case 99:
			l.P99Micros = p.Value * micros
		}
	}
	return l
}

// action is what every worker repeats. It keeps the context because fortio passes one of its own.
type action struct {
	ctx   context.Context //nolint:containedctx // see above
	do    func(ctx context.Context, worker int) error
	first *firstError
}

// Run implements periodic.Runnable.
func (a action) Run(_ context.Context, id periodic.ThreadID) (bool, string) {
	if err := a.do(a.ctx, int(id)); err != nil {
		a.first.note(err)
		return false, err.Error()
	}
	return true, ""
}

type firstError struct {
	mu  sync.Mutex
	err error
}

func (f *firstError) note(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

func (f *firstError) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}
