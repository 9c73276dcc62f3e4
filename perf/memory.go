// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/perf/alone"
	"github.com/ambientlab/ambientlab/perf/pod"
	"github.com/ambientlab/ambientlab/reports/schema"
	"github.com/ambientlab/ambientlab/topologies/driver/netns"
)

// AloneCommand is the argument that makes command perf a process that package alone starts.
const AloneCommand = "alone"

// Waits of the memory case. A ztunnel gives memory back within three seconds after it has come to rest.
const (
	afterReady = 3 * time.Second
	atRest     = 6 * time.Second
	afterClose = 30 * time.Second
)

const manyRequests = 100_000

// figure is a memory figure: its name, and what it should be at most in MB (of 10⁶ bytes); 0 asks for nothing.
type figure struct {
	name string
	want float64
}

var (
	idleXDS      = figure{"idle, 2 pods, by xDS", 14}
	idleLocal    = figure{"idle, no pod, by LOCAL_XDS_PATH", 14}
	afterMany    = figure{"after 100 000 requests", 19}
	hundredPods  = figure{"100 enrolled pods", 22}
	thousand     = figure{"1 000 open connections", 0}
	tenThousand  = figure{"10 000 open connections", 0}
	closedAgain  = figure{"30 s after 10 000 connections closed", 0}
	bulkLocal    = figure{"100 000 workloads, by LOCAL_XDS_PATH", 84}
	bulkXDS      = figure{"100 000 workloads, by xDS", 84}
	bulkLocalTop = figure{"peak with 100 000 workloads, by LOCAL_XDS_PATH", 150}
	bulkXDSTop   = figure{"peak with 100 000 workloads, by xDS", 150}
	backToRest   = figure{"closed 10 000 connections against before", 1.5}
)

var figuresInOrder = []figure{
	idleXDS, idleLocal, hundredPods, afterMany, thousand, tenThousand, closedAgain, bulkLocal, bulkLocalTop, bulkXDS, bulkXDSTop,
}

// memory asks everything once: what a process holds hardly differs from one time to the next.
func (b *bench) memory(ctx context.Context, s *site) error {
	if err := b.memoryUnderLoad(ctx, s); err != nil {
		return err
	}
	exe, err := netns.FindBinaries(b.o.Bin)
	if err != nil {
		return err
	}
	for _, m := range []struct {
		rss, peak figure
		o         alone.Options
		small     bool
	}{
		{rss: idleLocal, small: true},
		{rss: hundredPods, o: alone.Options{Pods: 100}, small: true},
		{rss: bulkLocal, peak: bulkLocalTop, o: alone.Options{Workloads: 100_000}},
		{rss: bulkXDS, peak: bulkXDSTop, o: alone.Options{Workloads: 100_000, XDS: true}},
	} {
		if b.o.Small && !m.small {
			continue
		}
		b.o.Log.Info("measuring memory", "of", m.rss.name)
		res, err := runAlone(ctx, exe, m.o)
		if err != nil {
			return fmt.Errorf("%s: %w", m.rss.name, err)
		}
		b.remember(m.rss, res.RSSBytes)
		if m.peak.name != "" {
			b.remember(m.peak, res.PeakBytes)
		}
	}
	for _, f := range figuresInOrder {
		if s := b.series[seriesKey{caseMemory, Ztunnel, f.name}]; s != nil {
			b.doc.Series = append(b.doc.Series, *s)
		}
	}
	return nil
}

func (b *bench) remember(f figure, bytes int64) {
	b.add(caseMemory, Ztunnel, metric{f.name, "MB", schema.Lower}, float64(bytes)/1e6)
}

// memoryUnderLoad looks at the ztunnel of the lab that holds more, with and after many requests and connections.
func (b *bench) memoryUnderLoad(ctx context.Context, s *site) error {
	st := s.stations[Ztunnel]
	look := func(f figure, wait time.Duration) error {
		if err := pause(ctx, wait); err != nil {
			return err
		}
		most, err := s.most("VmRSS")
		if err == nil {
			b.remember(f, most)
		}
		return err
	}
	b.o.Log.Info("measuring memory", "of", afterMany.name)
	load := pod.Load{Kind: pod.Requests, Connections: 16, Payload: requestBytes, Targets: st.targets}
	for done := int64(0); done < manyRequests; {
		load.Duration = time.Second
		got, err := st.measure(load)
		if err != nil {
			return fmt.Errorf("%s: %w", afterMany.name, err)
		}
		done += got.result.Count
	}
	if err := look(afterMany, atRest); err != nil {
		return err
	}
	for _, f := range []struct {
		figure
		n int
	}{{thousand, 1000}, {tenThousand, 10_000}} {
		if b.o.Small && f.n > 1000 {
			return nil
		}
		b.o.Log.Info("measuring memory", "of", f.name)
		hold := pod.Load{Kind: pod.Hold, Connections: f.n, Payload: 64, Targets: st.targets}
		if _, err := st.client.ask(pod.Request{Prepare: &hold}); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err := look(f.figure, atRest); err != nil {
			return err
		}
		if _, err := st.client.ask(pod.Request{Finish: true}); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	b.o.Log.Info("measuring memory", "of", closedAgain.name)
	return look(closedAgain, afterClose)
}

// most is what the ztunnel that has more of it has.
func (s *site) most(field string) (most int64, err error) {
	for _, z := range s.ztunnels {
		n, err := z.memory(field)
		if err != nil {
			return 0, err
		}
		most = max(most, n)
	}
	return most, nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// runAlone starts this program again, in namespaces of its own.
func runAlone(ctx context.Context, bin string, o alone.Options) (alone.Result, error) {
	cmd := alone.Command(ctx, "/proc/self/exe", AloneCommand, "--ztunnel", filepath.Join(bin, "ztunnel"),
		"--workloads", strconv.Itoa(o.Workloads), "--pods", strconv.Itoa(o.Pods), "--xds="+strconv.FormatBool(o.XDS), "--settle", afterReady.String())
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return alone.Result{}, fmt.Errorf("%w: %s", err, strings.TrimSpace(errOut.String()))
	}
	var res alone.Result
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		return res, fmt.Errorf("decode result: %w", err)
	}
	return res, nil
}

// memoryGoals are those figures that have a bound.
func memoryGoals(b *bench) []schema.Goal {
	var out []schema.Goal
	value := func(f figure) (float64, bool) {
		s := b.series[seriesKey{caseMemory, Ztunnel, f.name}]
		if s == nil {
			return 0, false
		}
		return s.Samples[0], true
	}
	for _, f := range figuresInOrder {
		if v, ok := value(f); ok && f.want > 0 {
			out = append(out, schema.Goal{Name: "memory: " + f.name, Unit: "MB", Better: schema.Lower, Want: f.want, Got: v, Min: v, Max: v})
		}
	}
	before, ok := value(afterMany)
	if after, measured := value(closedAgain); ok && measured {
		r := after / before
		out = append(out, schema.Goal{Name: "memory: " + backToRest.name, Unit: "×", Better: schema.Lower, Want: backToRest.want, Got: r, Min: r, Max: r})
	}
	return out
}
