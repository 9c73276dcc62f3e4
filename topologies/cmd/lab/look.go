// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
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
	labs, err := a.labs(ctx)
	if err != nil {
		return err
	}
	stands := slices.ContainsFunc(labs, standing.stands)
	if a.lab == "" && !stands {
		return a.print([]lab.PodInfo{}, func() {
			fmt.Fprintln(a.stdout, errNoLab)
			if len(labs) > 0 {
				fmt.Fprintln(a.stdout, "`lab list` shows the files of labs that are gone, `lab gc` removes them")
			}
		})
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

// list shows the labs of this user.
func (a *app) list(ctx context.Context) error {
	labs, err := a.labs(ctx)
	if err != nil {
		return err
	}
	type row struct {
		Name       string `json:"name"`
		Driver     string `json:"driver"`
		Stands     bool   `json:"stands"`
		Dir        string `json:"dir,omitempty"`
		Kubeconfig string `json:"kubeconfig,omitempty"`
		CNI        string `json:"cni,omitempty"`
	}
	rows := []row{}
	text := [][]string{{"LAB", "DRIVER", "STATE", "FILES"}}
	for _, l := range labs {
		rows = append(rows, row{l.name, l.driver, l.stands(), l.dir, l.kubeconfig, l.cni})
		state := cmp.Or(l.gone, "stands")
		if l.cni != "" {
			state += ", with the CNI " + l.cni
		}
		text = append(text, []string{l.name, l.driver, state, cmp.Or(l.dir, l.kubeconfig)})
	}
	return a.print(rows, func() {
		if len(labs) == 0 {
			fmt.Fprintln(a.stdout, errNoLab)
			return
		}
		a.table(text)
	})
}

func (a *app) printPods(pods []lab.PodInfo) {
	rows := [][]string{{"NAMESPACE", "NAME", "NODE", "IPS", "READY", "ENROLLED", "PROBLEM"}}
	for _, p := range pods {
		rows = append(rows, []string{p.Namespace, p.Name, p.Node, joinAddrs(p.IPs), yes(p.Ready), yes(p.Enrolled), brief(p.Problem)})
	}
	a.table(rows)
}

var exitCode = regexp.MustCompile(`ended with exit code \d+`)

// brief is a problem in one cell of a table: of a process that ended not what it printed, which `lab logs` shows.
func brief(problem string) string {
	if at := exitCode.FindStringIndex(problem); at != nil {
		problem = problem[:at[1]]
	}
	problem, _, _ = strings.Cut(problem, "\n")
	const most = 120
	if r := []rune(problem); len(r) > most {
		problem = string(r[:most-1]) + "…"
	}
	return problem
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
		return ref, usageError{err: err}
	}
	info, err := l.Find(ctx, ref)
	return info.PodRef, err
}

// startCode is a shell's exit code for a command that did not start.
func startCode(e *lab.StartError) int {
	const notExecutable, notFound = 126, 127
	if errors.Is(e, fs.ErrNotExist) || errors.Is(e, syscall.ENOTDIR) {
		return notFound
	}
	return notExecutable
}

func (a *app) exec(ctx context.Context, pod string, argv []string) error {
	return a.execWith(ctx, pod, argv, lab.Stdio{In: a.stdin, Out: a.stdout, Err: a.stderr})
}

func (a *app) execWith(ctx context.Context, pod string, argv []string, stdio lab.Stdio) error {
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	ref, err := findPod(ctx, l, pod)
	if err != nil {
		return err
	}
	exit, err := l.Exec(ctx, ref, argv, stdio)
	if refused := (*lab.StartError)(nil); errors.As(err, &refused) {
		return failure{code: startCode(refused), err: err}
	}
	if err != nil {
		return err
	}
	if exit != 0 {
		return exitError(exit)
	}
	return nil
}

func (a *app) topologies() error {
	type row struct {
		Name        string `json:"name"`
		Description string `json:"description"`
	}
	rows := []row{}
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
