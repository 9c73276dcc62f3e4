// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// apiLogs are logs as an API server has them. later comes when somebody follows.
type apiLogs struct {
	lines, later map[string][]string // by pod
}

func (l apiLogs) LogSources(context.Context) ([]lab.LogSource, error) {
	return []lab.LogSource{
		{Name: "shop/web", Pod: lab.PodRef{Namespace: "shop", Name: "web"}}, {Name: "ztunnel.node1", Pod: lab.PodRef{Namespace: "istio-system", Name: "ztunnel-x"}},
	}, nil
}

func (l apiLogs) CopyLog(ctx context.Context, pod lab.PodRef, o lab.LogOptions, w io.Writer) error {
	lines := slices.Clone(l.lines[pod.Name])
	if o.Follow {
		lines = append(lines, l.later[pod.Name]...)
	}
	for _, line := range lines {
		if at, _ := lineTime([]byte(line)); at.Before(o.Since) {
			continue
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	if o.Follow {
		<-ctx.Done()
	}
	return nil
}

// Logs of a cluster are put in order by its times, which are not shown; following goes on where what there was has ended.
func TestClusterLogsAreMerged(t *testing.T) {
	logs := apiLogs{
		lines: map[string][]string{"web": {"2026-01-01T10:00:02Z two"}, "ztunnel-x": {"2026-01-01T10:00:01Z {\"one\":1}", "2026-01-01T10:00:03Z three"}},
		later: map[string][]string{"web": {"2026-01-01T10:00:04Z four"}},
	}
	c := &clusterLogs{from: logs, ask: t.Context(), dir: t.TempDir(), begun: map[string]bool{}, pods: map[string]lab.PodRef{}}
	defer c.close()
	paths := c.all()
	if err := c.read(t.Context(), []string{"shop/web", "ztunnel.node1"}, time.Time{}, true); err != nil {
		t.Fatal(err)
	}
	m := &merger{stamped: true}
	defer m.close()
	if err := m.open(paths); err != nil {
		t.Fatal(err)
	}
	var got []string
	for end := time.Now().Add(10 * time.Second); len(got) < 4 && time.Now().Before(end); {
		if err := m.each(func(l logLine) error { got = append(got, l.source+" "+string(l.text)); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"ztunnel.node1 {\"one\":1}", "shop/web two", "ztunnel.node1 three", "shop/web four"}, got); diff != "" {
		t.Error(diff)
	}
	if c.gone() {
		t.Error("it ended")
	}
}
