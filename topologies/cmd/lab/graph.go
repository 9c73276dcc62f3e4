// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambientlab/ambientlab/reports/render"
	"github.com/ambientlab/ambientlab/reports/schema"
	"github.com/ambientlab/ambientlab/topologies/cmd/lab/graph"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

type graphOptions struct {
	since, by, theme string
	svg, dot, json   bool
}

func (a *app) graphCommand() *cobra.Command {
	var o graphOptions
	c := &cobra.Command{
		Use: "graph", Short: "Show who talked to whom, how, and as whom",
		Long: "Shows the connections that the proxies of a lab saw: from which workload to which, by which service, encrypted (HBONE),\n" +
			"plain or denied, with identities, rates, bytes and errors. They come from access logs, open connections and counters;\n" +
			"what met no proxy is not there. As a table, or as SVG, DOT or JSON (the document that reports/schema describes).",
		Example:     "  lab graph --since 1m\n  lab graph -o mesh.svg\n  lab graph --svg --by node > mesh.svg\n  lab graph --dot | dot -Tpdf > mesh.pdf\n  lab graph -o json",
		Annotations: map[string]string{outputs: "svg dot *.svg *.dot *.json"},
		Args:        cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			since, err := parseSince(o.since, time.Now())
			if err != nil {
				return mistake(c, err)
			}
			form, err := o.form(a.output)
			if err != nil {
				return mistake(c, err)
			}
			return a.graph(c.Context(), o, form, since)
		},
	}
	c.Flags().StringVar(&o.since, "since", "", "leave out connections that ended before: 90s, 5m, or a time in RFC 3339")
	c.Flags().StringVar(&o.by, "by", "namespace", "what boxes stand for: namespace or node")
	c.Flags().StringVar(&o.theme, "theme", "auto", "colours of an SVG: auto, light or dark")
	c.Flags().BoolVar(&o.svg, "svg", false, "the same as -o svg")
	c.Flags().BoolVar(&o.dot, "dot", false, "the same as -o dot")
	c.Flags().BoolVar(&o.json, "json", false, "the same as -o json")
	return c
}

// form is what to write: text, svg, dot or json.
func (o *graphOptions) form(output string) (string, error) {
	form := output
	if ext := filepath.Ext(output); ext != "" {
		form = ext[1:]
	}
	given := output != "text"
	for name, set := range map[string]bool{"svg": o.svg, "dot": o.dot, "json": o.json} {
		if !set {
			continue
		}
		if given && form != name {
			return "", errors.New("graph: want one form")
		}
		form, given = name, true
	}
	switch {
	case o.by != string(render.ByNamespace) && o.by != string(render.ByNode):
		return "", fmt.Errorf("--by %s: want namespace or node", o.by)
	case o.theme != string(render.Auto) && o.theme != string(render.Light) && o.theme != string(render.Dark):
		return "", fmt.Errorf("--theme %s: want auto, light or dark", o.theme)
	}
	return form, nil
}

func (a *app) graph(ctx context.Context, o graphOptions, form string, since time.Time) error {
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	g, err := gather(ctx, l, since)
	if err != nil {
		return err
	}
	if filepath.Ext(a.output) == "" {
		return a.writeGraph(a.stdout, g, o, form)
	}
	f, err := os.Create(a.output)
	if err != nil {
		return fmt.Errorf("write graph: %w", err)
	}
	if err := errors.Join(a.writeGraph(f, g, o, form), f.Close()); err != nil {
		return err
	}
	a.progress(fmt.Sprintf("%s: %d nodes, %d edges", a.output, len(g.Nodes), len(g.Edges)))
	return nil
}

func (a *app) writeGraph(w io.Writer, g *schema.Graph, o graphOptions, form string) error {
	switch form {
	case "svg":
		return render.GraphSVG(w, g, render.Group(o.by), render.Theme(o.theme))
	case "dot":
		return render.GraphDOT(w, g, render.Group(o.by))
	case "json":
		return g.Encode(w)
	}
	a.table(graphRows(g))
	return nil
}

// gather asks the lab for all that a graph is made of.
func gather(ctx context.Context, l *lab.Lab, since time.Time) (*schema.Graph, error) {
	pods, err := l.Pods(ctx)
	if err != nil {
		return nil, err
	}
	ev := graph.Evidence{Lab: l.Spec.Name, Pods: pods, External: l.Spec.External}
	for _, node := range l.Nodes() {
		z := graph.Ztunnel{Node: node}
		var errs [3]error
		z.Dump, errs[0] = l.ConfigDump(ctx, node)
		z.Entries, errs[1] = l.AccessLog(ctx, node, since)
		z.Samples, errs[2] = l.Scrape(ctx, node)
		if err := errors.Join(errs[:]...); err != nil {
			return nil, err
		}
		ev.Ztunnels = append(ev.Ztunnels, z)
	}
	ev.From, ev.To = graph.Window(since, time.Now(), ev.Ztunnels)
	return graph.Build(ev), nil
}

func graphRows(g *schema.Graph) [][]string {
	rows := [][]string{{"FROM", "TO", "VIA", "PORT", "PROTOCOL", "CONNECTIONS", "OPEN", "SENT", "RECEIVED", "ERRORS", "AS", "WHAT"}}
	plain := func(id string) string { _, name, _ := strings.Cut(id, "/"); return name }
	for i := range g.Edges {
		e := &g.Edges[i]
		port := make([]string, len(e.Ports))
		for j, p := range e.Ports {
			port[j] = strconv.Itoa(p)
		}
		what := e.LastError
		if len(e.Policies) > 0 {
			what = "policy " + strings.Join(e.Policies, ", ")
		}
		rows = append(rows, []string{
			plain(e.From), plain(e.To), plain(e.Service), strings.Join(port, ","), string(e.Protocol), strconv.Itoa(e.Connections), strconv.Itoa(e.Open),
			strconv.FormatUint(e.BytesSent, 10), strconv.FormatUint(e.BytesReceived, 10), strconv.Itoa(e.Errors), e.SourceIdentity, brief(what),
		})
	}
	return rows
}
