// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// logsEvery is how often logs are looked at while they are followed. Lines of different sources that come within one look are
// put in order; later ones cannot be.
const logsEvery = 100 * time.Millisecond

type logsOptions struct {
	follow, all bool
	since       string
}

func (a *app) logsCommand() *cobra.Command {
	var o logsOptions
	c := &cobra.Command{
		Use: "logs [SOURCE...]", Short: "Show the logs of pods and daemons, merged by time",
		Long: "Shows the log of a pod or a daemon: web, shop/web, control, ztunnel.node1, cni-agent.node1, hold. \"ztunnel\" is every\n" +
			"node's. The lines of several are merged by their times, each with its source in front; a line without a time belongs to\n" +
			"the one before it. With -o json each is an object: source, time, and the line, or what it holds if that is JSON.",
		Example: "  lab logs web\n  lab logs -f web cart ztunnel\n  lab logs --all --since 1m\n  lab logs --all -f -o json",
		Args: func(_ *cobra.Command, args []string) error {
			if o.all != (len(args) == 0) {
				return errors.New("want the names of sources, or --all")
			}
			return nil
		},
		ValidArgsFunction: a.completeSources,
		RunE: func(c *cobra.Command, args []string) error {
			since, err := parseSince(o.since, time.Now())
			if err != nil {
				return mistake(c, err)
			}
			return a.logs(c.Context(), args, o, since)
		},
	}
	c.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on until Ctrl-C, or until the lab ends")
	c.Flags().BoolVar(&o.all, "all", false, "the logs of all pods and daemons")
	c.Flags().StringVar(&o.since, "since", "", "leave out what is older: 90s, 5m, or a time in RFC 3339")
	return c
}

func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return at, fmt.Errorf("--since %s: want a duration such as 90s, or a time in RFC 3339", s)
	}
	return at, nil
}

// completeSources needs no lab that answers where the logs are files.
func (a *app) completeSources(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	from, err := a.logSources(c.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer from.close()
	return slices.Sorted(maps.Keys(from.all())), cobra.ShellCompDirectiveNoFileComp
}

// logs shows logs; with follow, until ctx ends or the lab does.
func (a *app) logs(ctx context.Context, names []string, o logsOptions, since time.Time) error {
	from, err := a.logSources(ctx)
	if err != nil {
		return err
	}
	defer from.close()
	paths := from.all()
	if !o.all {
		if paths, err = a.logPaths(ctx, from, paths, names); err != nil {
			return err
		}
	}
	m := &merger{since: since, stamped: from.stamped()}
	defer m.close()
	if err := from.read(ctx, slices.Collect(maps.Keys(paths)), since, o.follow); err != nil {
		return err
	}
	if err := m.open(paths); err != nil {
		return err
	}
	p := a.logPrinter(paths, o.all)
	for {
		if err := m.each(p.print); err != nil {
			return fmt.Errorf("print log: %w", err)
		}
		if !o.follow || from.gone() || m.gone() {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil // whoever pressed Ctrl-C has seen enough
		case <-time.After(logsEvery):
		}
		if o.all {
			paths := from.all()
			if err := errors.Join(from.read(ctx, slices.Collect(maps.Keys(paths)), since, true), m.open(paths)); err != nil {
				return err
			}
		}
	}
}

// logPaths finds the logs of daemons and pods.
func (a *app) logPaths(ctx context.Context, from logSources, all map[string]string, names []string) (map[string]string, error) {
	paths := map[string]string{}
	for _, name := range names {
		if path, ok := all[name]; ok {
			paths[name] = path
			continue
		}
		found := false
		for source, path := range all {
			if strings.HasPrefix(source, name+".") && !strings.Contains(source, "/") {
				paths[source], found = path, true
			}
		}
		if found {
			continue
		}
		l, err := a.attach(ctx)
		if err != nil {
			return nil, err
		}
		ref, err := findPod(ctx, l, name)
		if err != nil {
			return nil, errors.Join(err, fmt.Errorf("daemons there are: %s", daemonLogs(all)))
		}
		paths[ref.String()] = from.pod(ref)
	}
	return paths, nil
}

func daemonLogs(all map[string]string) string {
	var names []string
	for name := range all {
		if !strings.Contains(name, "/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// logPrinter writes lines for people or for programs.
type logPrinter struct {
	w      io.Writer
	json   *json.Encoder // nil for people
	width  int           // of the names in front; 0: there are none
	colour bool
}

func (a *app) logPrinter(paths map[string]string, named bool) *logPrinter {
	p := &logPrinter{w: a.stdout}
	if a.output == "json" {
		p.json = json.NewEncoder(a.stdout)
		p.json.SetEscapeHTML(false)
		return p
	}
	if len(paths) > 1 || named {
		for name := range paths {
			p.width = max(p.width, len(name))
		}
	}
	f, ok := a.stdout.(*os.File)
	p.colour = ok && isTerminal(f) && os.Getenv("NO_COLOR") == ""
	return p
}

// logColours are what terminals have besides their own two, light or dark.
var logColours = []int{36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94, 91}

func (p *logPrinter) print(l logLine) error {
	if p.json != nil {
		return p.printJSON(l)
	}
	if p.width == 0 {
		_, err := fmt.Fprintf(p.w, "%s\n", l.text)
		return err
	}
	name := fmt.Sprintf("%-*s", p.width, l.source)
	if p.colour {
		h := fnv.New32a()
		_, _ = io.WriteString(h, l.source)
		name = fmt.Sprintf("\x1b[%dm%s\x1b[0m", logColours[h.Sum32()%uint32(len(logColours))], name)
	}
	_, err := fmt.Fprintf(p.w, "%s | %s\n", name, l.text)
	return err
}

func (p *logPrinter) printJSON(l logLine) error {
	out := struct {
		Source string          `json:"source"`
		Time   time.Time       `json:"time,omitzero"`
		Record json.RawMessage `json:"record,omitempty"`
		Line   string          `json:"line,omitempty"`
	}{Source: l.source, Time: l.time}
	if len(l.text) > 0 && l.text[0] == '{' && json.Valid(l.text) {
		out.Record = l.text
	} else {
		out.Line = string(l.text)
	}
	return p.json.Encode(out)
}
