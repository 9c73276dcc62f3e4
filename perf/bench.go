// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/reports/schema"
)

// Options say what to measure. The zero value measures nothing; Defaults is what people want.
type Options struct {
	Bin      string        // where the project's binaries are; "" lets the driver look
	Repeats  int           // rounds: each measures every case in every mode once
	Duration time.Duration // of one timed load
	Cases    []string      // of CaseNames
	Modes    []Mode        // ways to measure; nil means all
	Env      []string      // NAME=value of the ztunnels
	Small    bool          // memory: leave out what takes long, 10 000 connections and 100 000 workloads
	Revision string
	Log      *slog.Logger // progress
}

// Defaults takes about four minutes.
func Defaults() Options { return Options{Repeats: 5, Duration: time.Second, Cases: CaseNames()} }

// Quick takes less than one minute, and shows less.
func Quick() Options {
	return Options{Repeats: 3, Duration: 300 * time.Millisecond, Cases: CaseNames(), Small: true}
}

// Run measures. The end of ctx ends it with an error, and nothing is left behind.
func Run(ctx context.Context, o Options) (doc schema.BenchResults, err error) {
	if err := o.check(); err != nil {
		return doc, err
	}
	b := &bench{o: o, series: map[seriesKey]*schema.Series{}}
	b.doc.Started = time.Now()
	b.doc.Settings = schema.BenchSettings{Repeats: o.Repeats, DurationMillis: float64(o.Duration.Milliseconds()), Cases: o.Cases}
	o.Log.Info("bringing up the lab")
	s, err := open(ctx, o)
	if err != nil {
		return doc, err
	}
	defer func() {
		if down := s.close(ctx); err == nil && down != nil {
			err = fmt.Errorf("take down the lab: %w", down)
		}
	}()
	b.doc.Environment = environment(s, o.Revision)
	if err := b.measure(ctx, s); err != nil {
		return doc, err
	}
	b.doc.Finished = time.Now()
	b.doc.Goals = goals(b)
	return b.doc.Finish(), nil
}

func (b *bench) measure(ctx context.Context, s *site) error {
	memory := slices.Contains(b.o.Cases, caseMemory)
	if memory { // before anything has been asked of the ztunnels; they were ready before the lab was
		if err := pause(ctx, afterReady); err != nil {
			return err
		}
		most, err := s.most("VmRSS")
		if err != nil {
			return err
		}
		b.remember(idleXDS, most)
	}
	if err := b.rounds(ctx, s); err != nil {
		return err
	}
	if !memory {
		return nil
	}
	return b.memory(ctx, s)
}

func (o *Options) check() error {
	if o.Repeats < 1 || o.Duration <= 0 {
		return fmt.Errorf("measure: %d repeats of %s make no figure", o.Repeats, o.Duration)
	}
	for _, name := range o.Cases {
		if !slices.Contains(CaseNames(), name) {
			return fmt.Errorf("no case %q; there are: %s", name, strings.Join(CaseNames(), ", "))
		}
	}
	for _, m := range o.Modes {
		if !slices.Contains(modes, m) {
			return fmt.Errorf("no mode %q; there are: %v", m, modes)
		}
	}
	if len(o.Modes) == 0 {
		o.Modes = modes
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// bench gathers figures.
type bench struct {
	o      Options
	doc    schema.BenchResults
	series map[seriesKey]*schema.Series
}

type seriesKey struct {
	name   string
	mode   Mode
	metric string
}

// rounds measures every case in every mode in turn, in the opposite order every other time, so that whatever changes
// meanwhile changes for all.
func (b *bench) rounds(ctx context.Context, s *site) error {
	var cases []Case
	for _, c := range dataCases {
		if slices.Contains(b.o.Cases, c.Name) {
			c.load.Duration = b.o.Duration
			cases = append(cases, c)
		}
	}
	for round := range b.o.Repeats {
		for _, c := range cases {
			turn := slices.Clone(b.o.Modes)
			if round%2 == 1 {
				slices.Reverse(turn)
			}
			for _, m := range turn {
				got, err := s.stations[m].measure(c.load)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					return fmt.Errorf("%s over %s: %w", c.Name, m, err)
				}
				b.note(c, m, got)
			}
			b.o.Log.Info("measured", "round", fmt.Sprintf("%d/%d", round+1, b.o.Repeats), "case", c.Name)
		}
	}
	b.sorted(cases)
	return nil
}

func (b *bench) note(c Case, m Mode, s sample) {
	for metric, value := range c.values(s) {
		b.add(c.Name, m, metric, value)
	}
}

func (b *bench) add(name string, m Mode, q metric, value float64) {
	k := seriesKey{name, m, q.name}
	if b.series[k] == nil {
		b.series[k] = &schema.Series{Case: name, Mode: string(m), Metric: q.name, Unit: q.unit, Better: q.better}
	}
	b.series[k].Samples = append(b.series[k].Samples, value)
}

// sorted puts the figures of the data path into the document: by case, quantity and mode.
func (b *bench) sorted(cases []Case) {
	for _, c := range cases {
		for _, q := range order {
			for _, m := range modes {
				if s := b.series[seriesKey{c.Name, m, q.name}]; s != nil {
					b.doc.Series = append(b.doc.Series, *s)
				}
			}
		}
	}
}

func environment(s *site, revision string) schema.Environment {
	e := schema.Environment{
		OS: runtime.GOOS, Arch: runtime.GOARCH, Go: runtime.Version(), CPUs: runtime.NumCPU(), Root: os.Getuid() == 0, Revision: revision,
		GoMaxProcs: procs(), MTU: s.link.MTU, GSO: s.link.GSO, TLSSuite: tls.CipherSuiteName(tls.TLS_AES_128_GCM_SHA256),
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		e.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				e.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	return e
}
