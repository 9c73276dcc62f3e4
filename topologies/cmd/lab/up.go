// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/netns"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

const (
	defaultTopology = "three-nodes"
	meshNamespace   = "istio-system"
)

type upOptions struct {
	topology, name string
	detach         bool
	tlsKeys        bool
}

// load reads a topology file, or one of the catalogue.
func load(name string) (*topologies.Spec, error) {
	if slices.Contains(topologies.Catalogue(), name) {
		return topologies.Open(name)
	}
	if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no topology %q: neither a file nor one of %s", name, strings.Join(topologies.Catalogue(), ", "))
	}
	return topologies.LoadFile(name)
}

// up brings a lab up and, unless it is detached, keeps it until ctx ends.
func (a *app) up(ctx context.Context, o upOptions) error {
	spec, err := load(o.topology)
	if err != nil {
		return err
	}
	if o.name == "" {
		o.name = spec.Name
	}
	spec.Debug.TLSKeys = spec.Debug.TLSKeys || o.tlsKeys
	if strings.ContainsAny(o.name, "/ ") || o.name == "." || o.name == ".." {
		return usageError{err: fmt.Errorf("--name %q: want a plain name", o.name), command: "up"}
	}
	dir, err := labdir.New(os.Getenv, o.name)
	if err != nil {
		return err
	}
	started := time.Now()
	d := netns.New(netns.Options{Detach: o.detach, Progress: a.progress})
	if err := d.Up(ctx, spec, lab.UpOptions{Dir: string(dir)}); err != nil {
		if _, left := os.Stat(string(dir)); ctx.Err() != nil && errors.Is(left, os.ErrNotExist) {
			return errors.New("interrupted; the lab is down")
		}
		return err
	}
	pods, err := d.Pods(ctx)
	if err != nil {
		return errors.Join(err, d.Down(context.WithoutCancel(ctx)))
	}
	a.progress(fmt.Sprintf("lab %s stands: %d nodes, %s, up in %.1f s", o.name, len(spec.Clusters[0].Nodes), countPods(pods), time.Since(started).Seconds()))
	if o.detach {
		a.progress("`lab ps` lists its pods, `lab down " + o.name + "` takes it down")
		return nil
	}
	a.progress("`lab ps` in another terminal lists its pods; Ctrl-C takes it down")
	select {
	case <-ctx.Done():
		a.progress("taking it down")
		return d.Down(context.WithoutCancel(ctx))
	case <-d.Ended():
		return errors.New("the lab ended by itself, or somebody took it down")
	}
}

// countPods tells the topology's pods from those of the mesh itself.
func countPods(pods []lab.PodInfo) string {
	mesh := 0
	for _, p := range pods {
		if p.Namespace == meshNamespace {
			mesh++
		}
	}
	return fmt.Sprintf("%d pods and %d of the mesh", len(pods)-mesh, mesh)
}

// progress is for people: it is no part of the product on stdout.
func (a *app) progress(what string) { fmt.Fprintln(a.stderr, what) }

// attach finds the lab that --lab names, or the only one.
func (a *app) attach(ctx context.Context) (*lab.Lab, error) {
	dir, err := a.find()
	if err != nil {
		return nil, err
	}
	return netns.Attach(ctx, dir)
}

var errNoLab = errors.New("no lab stands: bring one up with `lab up`")

func (a *app) find() (labdir.Dir, error) {
	labs, err := listLabs()
	if err != nil {
		return "", err
	}
	var names []string
	var last labdir.Dir
	for _, l := range labs {
		if !l.Stands {
			continue
		}
		if l.Dir.Name() == a.lab {
			return l.Dir, nil
		}
		names = append(names, l.Dir.Name())
		last = l.Dir
	}
	switch {
	case a.lab != "":
		return "", fmt.Errorf("no lab %q stands; there are: %s", a.lab, orNone(names))
	case len(names) == 0:
		return "", errNoLab
	case len(names) > 1:
		return "", usageError{err: fmt.Errorf("several labs stand, choose with --lab: %s", strings.Join(names, ", "))}
	}
	return last, nil
}

func listLabs() ([]labdir.Lab, error) {
	roots, err := labdir.Roots(os.Getenv)
	if err != nil {
		return nil, err
	}
	return labdir.List(roots...)
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func (a *app) down(ctx context.Context) error {
	dir, err := a.find()
	if err != nil {
		return err
	}
	return netns.Reach(dir).Down(ctx)
}

func (a *app) gc() error {
	roots, err := labdir.Roots(os.Getenv)
	if err != nil {
		return err
	}
	removed, err := labdir.Collect(roots...)
	if removed == nil {
		removed = []string{} // [] in JSON
	}
	if printErr := a.print(removed, func() {
		for _, name := range removed {
			fmt.Fprintf(a.stdout, "removed %s\n", name)
		}
	}); printErr != nil {
		return errors.Join(err, printErr)
	}
	return err
}
