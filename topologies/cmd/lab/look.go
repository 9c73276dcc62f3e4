// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// print writes v as JSON, or lets text write it for people.
func (a *app) print(v any, text func()) error {
	if a.output != "json" {
		text()
		return nil
	}
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func (a *app) table(rows [][]string) {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	_ = w.Flush() // to a terminal or a pipe, whose reader is gone if it fails
}

func (a *app) ps(ctx context.Context) error {
	labs, err := listLabs()
	if err != nil {
		return err
	}
	stand := 0
	for _, l := range labs {
		if l.Stands {
			stand++
		}
	}
	if a.lab == "" && stand != 1 {
		return a.printLabs(labs)
	}
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	pods, err := l.Pods(ctx)
	if err != nil {
		return err
	}
	return a.print(pods, func() { a.printPods(pods) })
}

func (a *app) printLabs(labs []labdir.Lab) error {
	type row struct {
		Name   string
		Stands bool
		Dir    string
	}
	rows := []row{}
	text := [][]string{{"LAB", "STATE", "DIRECTORY"}}
	for _, l := range labs {
		rows = append(rows, row{l.Dir.Name(), l.Stands, string(l.Dir)})
		state := "stands"
		if !l.Stands {
			state = "gone; `lab gc` removes its files"
		}
		text = append(text, []string{l.Dir.Name(), state, string(l.Dir)})
	}
	return a.print(rows, func() {
		if len(labs) == 0 {
			fmt.Fprintln(a.stdout, "no lab stands")
			return
		}
		a.table(text)
	})
}

func (a *app) printPods(pods []lab.PodInfo) {
	rows := [][]string{{"NAMESPACE", "NAME", "NODE", "IPS", "READY", "ENROLLED", "PROBLEM"}}
	for _, p := range pods {
		rows = append(rows, []string{p.Namespace, p.Name, p.Node, joinAddrs(p.IPs), yes(p.Ready), yes(p.Enrolled), p.Problem})
	}
	a.table(rows)
}

func joinAddrs(ips []netip.Addr) string {
	list := make([]string, len(ips))
	for i, ip := range ips {
		list[i] = ip.String()
	}
	return strings.Join(list, ",")
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// findPod completes a name like "web" or "shop/web".
func findPod(ctx context.Context, l *lab.Lab, name string) (lab.PodRef, error) {
	ref, err := lab.ParsePodRef(name)
	if err != nil {
		return ref, usageError{err}
	}
	info, err := l.Find(ctx, ref)
	return info.PodRef, err
}

func (a *app) exec(ctx context.Context, pod string, argv []string) error {
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	ref, err := findPod(ctx, l, pod)
	if err != nil {
		return err
	}
	exit, err := l.Exec(ctx, ref, argv, lab.Stdio{In: a.stdin, Out: a.stdout, Err: a.stderr})
	if err != nil {
		return err
	}
	if exit != 0 {
		return exitError(exit)
	}
	return nil
}

// call makes calls. Calls that failed are a verdict: exit 1.
func (a *app) call(ctx context.Context, pod, url string, flags []string) error {
	argv := append(append([]string{"workload", "call"}, flags...), url)
	if a.output == "json" {
		return a.exec(ctx, pod, argv)
	}
	product := a.stdout
	var document bytes.Buffer
	a.stdout = &document
	err := a.exec(ctx, pod, argv)
	a.stdout = product
	var res workload.Result
	if decodeErr := json.Unmarshal(document.Bytes(), &res); decodeErr != nil {
		_, _ = a.stdout.Write(document.Bytes()) // help, or nothing
		return err
	}
	for _, c := range res.Calls {
		fmt.Fprintln(a.stdout, callLine(c))
	}
	if n := res.OK + res.Failed; n > 1 {
		fmt.Fprintf(a.stdout, "%d calls, %d failed, median %s, slowest %s\n", n, res.Failed, res.LatencyP50, res.LatencyMax)
	}
	return err
}

// callLine is a call for people.
func callLine(c workload.Call) string {
	line := "ok"
	switch {
	case !c.OK:
		line = "failed: " + c.Error
	case c.Status != 0:
		line = fmt.Sprintf("%d %s", c.Status, http.StatusText(c.Status))
	}
	line += fmt.Sprintf("  %.2f ms", float64(c.Latency.Microseconds())/1000)
	if c.LocalAddr.IsValid() {
		line += fmt.Sprintf("  %s → %s", c.LocalAddr, c.RemoteAddr)
	}
	if s := c.Seen; s != nil {
		by := s.Workload
		if s.Namespace != "" {
			by = s.Namespace + "/" + by
		}
		line += fmt.Sprintf("  answered by %s at %s, which saw %s", by, s.LocalAddr, s.RemoteAddr)
	}
	return line
}

// logs shows a log file; with follow, until ctx ends or the lab does.
func (a *app) logs(ctx context.Context, name string, follow bool) error {
	dir, err := a.find()
	if err != nil {
		return err
	}
	path, err := a.logPath(ctx, dir, name)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	for {
		if _, err := io.Copy(a.stdout, f); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if _, err := os.Stat(path); !follow || err != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// logPath finds the log of a daemon or a pod.
func (a *app) logPath(ctx context.Context, dir labdir.Dir, name string) (string, error) {
	if path := dir.Log(name); !strings.Contains(name, "/") {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	l, err := a.attach(ctx)
	if err != nil {
		return "", err
	}
	ref, err := findPod(ctx, l, name)
	if err != nil {
		return "", errors.Join(err, fmt.Errorf("logs there are: %s", logNames(dir)))
	}
	return dir.PodLog(ref.Namespace, ref.Name), nil
}

func logNames(dir labdir.Dir) string {
	files, _ := filepath.Glob(dir.Log("*"))
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".log")
	}
	return strings.Join(files, ", ")
}

func (a *app) topologies() error {
	type row struct{ Name, Description string }
	var rows []row
	var text [][]string
	for _, name := range topologies.Catalogue() {
		s, err := topologies.Open(name)
		if err != nil {
			return err
		}
		rows = append(rows, row{name, s.Description})
		text = append(text, []string{name, s.Description})
	}
	return a.print(rows, func() { a.table(text) })
}

func (a *app) check(name string) error {
	spec, err := load(name)
	if err != nil {
		return err
	}
	c := &spec.Clusters[0]
	objs, err := spec.Objects(c.Name)
	if err != nil {
		return err
	}
	return a.print(spec, func() {
		fmt.Fprintf(a.stdout, "%s is good: %d nodes, %d workloads, %d services, %d objects\n", spec.Name, len(c.Nodes), len(c.Workloads), len(c.Services), len(objs))
	})
}

// trace makes a call and draws its hops. A call that failed is a verdict: exit 1.
func (a *app) trace(ctx context.Context, pod, url string) error {
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	ref, err := findPod(ctx, l, pod)
	if err != nil {
		return err
	}
	t, err := l.Trace(ctx, ref, url, workload.Options{})
	if err != nil {
		return err
	}
	var drawErr error
	if err := a.print(t, func() { drawErr = t.Draw(a.stdout) }); err != nil || drawErr != nil {
		return errors.Join(err, drawErr)
	}
	if !t.Call.OK {
		return exitError(1)
	}
	return nil
}
