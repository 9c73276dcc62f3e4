// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/topologies/cmd/lab/zc"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// zcOptions are the flags of `lab zc`.
type zcOptions struct {
	node, file string
	raw        bool
	filter     zc.Filter
}

// zcView is one of the things that can be looked at. part is its JSON form.
type zcView struct {
	name, about string
	aliases     []string
	part        func(d *admin.Dump) any
	table       func(d, all *admin.Dump) zc.Table
}

func (a *app) zcViews(o *zcOptions) []zcView {
	now := time.Now()
	return []zcView{
		{"workloads", "Show the workloads that ztunnels know", []string{"workload", "w"},
			func(d *admin.Dump) any { return d.Workloads },
			func(d, all *admin.Dump) zc.Table { return zc.Workloads(d, all.Services) }},
		{"services", "Show the services that ztunnels know, and how many of their endpoints are healthy", []string{"service", "svc", "s"},
			func(d *admin.Dump) any { return d.Services },
			func(d, all *admin.Dump) zc.Table { return zc.Services(d, all.Services) }},
		{"policies", "Show the policies that ztunnels decide by", []string{"policy", "pol", "p"},
			func(d *admin.Dump) any { return d.Policies },
			func(d, _ *admin.Dump) zc.Table { return zc.Policies(d) }},
		{"certificates", "Show the certificates that ztunnels hold for the pods of their nodes", []string{"certificate", "certs", "cert"},
			func(d *admin.Dump) any { return d.Certificates },
			func(d, _ *admin.Dump) zc.Table { return zc.Certificates(d, now) }},
		{"connections", "Show the open connections of pods; -o wide adds ages, bytes and identities", []string{"connection", "cons"},
			func(d *admin.Dump) any { return admin.List[admin.WorkloadState](zc.States(d)) },
			func(d, all *admin.Dump) zc.Table {
				return zc.Connections(d, all, o.raw, a.output == "wide", now)
			}},
	}
}

func (a *app) zcCommand() *cobra.Command {
	var o zcOptions
	c := &cobra.Command{
		Use: "zc", Aliases: []string{"ztunnel-config"}, Short: "Look into ztunnels: workloads, services, policies, certificates, connections",
		Long: "Shows what the ztunnels of a lab know, with the columns of `istioctl ztunnel-config`. Without an argument it asks all of\n" +
			"them and says on standard error where they do not agree; a node's name asks that node's alone; a pod's name asks the\n" +
			"one of its node, and shows what concerns the pod.",
		Example: "  lab zc workloads\n  lab zc connections web -o wide\n  lab zc certificates node2 -o yaml\n  lab zc policies -f config_dump.json\n  lab zc log node1 --level debug",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return errors.Join(c.Help(), mistake(c, errors.New("zc: what to show is missing")))
		},
	}
	c.PersistentFlags().StringVar(&o.node, "node", "", "ask this node's ztunnel alone")
	_ = c.RegisterFlagCompletionFunc("node", a.completing(0, nodeWords))
	views := a.zcViews(&o)
	for _, v := range views {
		c.AddCommand(a.zcViewCommand(&o, v.name, v.about, v.aliases, func(d, all *admin.Dump) error { return a.zcPrint(d, all, v) }))
	}
	c.AddCommand(a.zcViewCommand(&o, "all", "Show all of it; with -o json or yaml, the config dumps by node", nil, func(d, all *admin.Dump) error {
		for _, v := range views {
			fmt.Fprintf(a.stdout, "# %s\n", v.name)
			a.zcTable(v.table(d, all))
			fmt.Fprintln(a.stdout)
		}
		return nil
	}))
	c.AddCommand(a.zcLogCommand(&o))
	return c
}

func (a *app) zcViewCommand(o *zcOptions, name, about string, aliases []string, show func(d, all *admin.Dump) error) *cobra.Command {
	c := &cobra.Command{
		Use: name + " [POD|NODE]", Short: about, Aliases: aliases, Args: cobra.MaximumNArgs(1),
		Example:           fmt.Sprintf("  lab zc %[1]s\n  lab zc %[1]s web\n  lab zc %[1]s --node node1 -o json", name),
		Annotations:       map[string]string{outputs: "table short wide yaml"},
		ValidArgsFunction: a.completing(1, podOrNodeWords),
		RunE: func(c *cobra.Command, args []string) error {
			what := ""
			if len(args) > 0 {
				what = args[0]
			}
			switch o.filter.Direction {
			case "", "inbound", "outbound":
			default:
				return mistake(c, fmt.Errorf("--direction %s: want inbound or outbound", o.filter.Direction))
			}
			dumps, filter, err := a.zcDumps(c.Context(), o, what)
			if err != nil {
				return err
			}
			if name == "all" && a.structured() {
				return a.printForm(dumps)
			}
			all, notes := dumps.Merged()
			for _, n := range notes {
				a.progress("note: " + n)
			}
			return show(zc.Pick(all, filter), all)
		},
	}
	c.Flags().StringVarP(&o.file, "file", "f", "", "read a config dump from this file and not from a lab")
	c.Flags().StringVar(&o.filter.Namespace, "namespace", "", "of this namespace alone")
	switch name {
	case "workloads", "services":
		c.Flags().StringVar(&o.filter.Address, "address", "", "with this address alone")
	case "connections":
		c.Flags().StringVar(&o.filter.Direction, "direction", "", "inbound or outbound alone")
		c.Flags().BoolVar(&o.raw, "raw", false, "show addresses and not names")
	}
	return c
}

// zcDumps gets the dumps that are asked for, and says what of them.
func (a *app) zcDumps(ctx context.Context, o *zcOptions, what string) (zc.Dumps, zc.Filter, error) {
	f := o.filter
	if o.file != "" {
		data, err := os.ReadFile(o.file)
		if err != nil {
			return nil, f, fmt.Errorf("read config dump: %w", err)
		}
		d := new(admin.Dump)
		if err := json.Unmarshal(data, d); err != nil {
			return nil, f, fmt.Errorf("read config dump %s: %w", o.file, err)
		}
		if what != "" {
			ref, err := lab.ParsePodRef(what)
			if err != nil {
				return nil, f, usageError{err: err}
			}
			f.Pod, f.PodNamespace = ref.Name, ref.Namespace
		}
		return zc.Dumps{o.file: d}, f, nil
	}
	l, nodes, f, err := a.zcTarget(ctx, o, what)
	if err != nil {
		return nil, f, err
	}
	dumps := zc.Dumps{}
	for _, node := range nodes {
		d, err := l.ConfigDump(ctx, node)
		if err != nil {
			return nil, f, err
		}
		dumps[node] = &d
	}
	return dumps, f, nil
}

// zcTarget finds out whose ztunnels are to be asked: those of all nodes, of a node, or of a pod's node.
func (a *app) zcTarget(ctx context.Context, o *zcOptions, what string) (*lab.Lab, []string, zc.Filter, error) {
	f := o.filter
	l, err := a.attach(ctx)
	if err != nil {
		return nil, nil, f, err
	}
	nodes := l.Nodes()
	if o.node != "" && !slices.Contains(nodes, o.node) {
		return nil, nil, f, usageError{err: fmt.Errorf("no node %q; there are: %v", o.node, nodes)}
	}
	switch {
	case what == "" || slices.Contains(nodes, what):
		if what != "" && o.node != "" && o.node != what {
			return nil, nil, f, usageError{err: fmt.Errorf("%s and --node %s are two nodes", what, o.node)}
		}
	default:
		ref, err := lab.ParsePodRef(what)
		if err != nil {
			return nil, nil, f, usageError{err: err}
		}
		p, err := l.Find(ctx, ref)
		if err != nil {
			return nil, nil, f, fmt.Errorf("%q is neither a node (%v) nor a pod: %w", what, nodes, err)
		}
		f.Pod, f.PodNamespace, f.PodUID = p.Name, p.Namespace, p.UID
		what = p.Node
	}
	switch {
	case o.node != "":
		nodes = []string{o.node}
	case what != "":
		nodes = []string{what}
	}
	return l, nodes, f, nil
}

func (a *app) zcPrint(d, all *admin.Dump, v zcView) error {
	if a.structured() {
		return a.printForm(v.part(d))
	}
	a.zcTable(v.table(d, all))
	return nil
}

func (a *app) zcTable(t zc.Table) { a.table(append([][]string{t.Header}, t.Rows...)) }

// structured reports whether -o asks for a form that programs read.
func (a *app) structured() bool { return a.output == "json" || a.output == "yaml" }

// printForm writes v as JSON or YAML.
func (a *app) printForm(v any) error {
	if a.output == "json" {
		return a.print(v, nil)
	}
	text, err := yaml.Marshal(v)
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if _, err := a.stdout.Write(text); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func (a *app) zcLogCommand(o *zcOptions) *cobra.Command {
	var level string
	c := &cobra.Command{
		Use: "log [NODE]", Short: "Show or change the log level of ztunnels", Args: cobra.MaximumNArgs(1),
		Long:              "Shows the log level of every ztunnel, or of one node's, and changes it with --level until the ztunnel ends.",
		Example:           "  lab zc log\n  lab zc log --level debug\n  lab zc log node1 --level info",
		ValidArgsFunction: a.completing(1, nodeWords),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.node = args[0]
			}
			return a.zcLog(c.Context(), o, level)
		},
	}
	c.Flags().StringVar(&level, "level", "", "error, warn, info, debug, trace or off")
	_ = c.RegisterFlagCompletionFunc("level", cobra.FixedCompletions([]string{"error", "warn", "info", "debug", "trace", "off"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) zcLog(ctx context.Context, o *zcOptions, level string) error {
	l, nodes, _, err := a.zcTarget(ctx, o, "")
	if err != nil {
		return err
	}
	type row struct {
		Node string `json:"node"`
		Says string `json:"says"`
	}
	rows := []row{}
	text := [][]string{{"NODE", "ZTUNNEL SAYS"}}
	path := "/logging"
	if level != "" {
		path += "?level=" + url.QueryEscape(level)
	}
	for _, node := range nodes {
		said, err := l.ReadPage(ctx, lab.Page{Node: node, Daemon: lab.DaemonZtunnel, Method: http.MethodPost, Path: path})
		if err != nil {
			return err
		}
		r := row{node, string(bytes.TrimSpace(said))}
		rows, text = append(rows, r), append(text, []string{r.Node, r.Says})
	}
	return a.print(rows, func() { a.table(text) })
}
