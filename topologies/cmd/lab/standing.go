// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/topologies/driver/kind"
	"github.com/ambientlab/ambientlab/topologies/driver/kube"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Names of drivers.
const (
	driverNetns = "netns"
	driverKind  = "kind"
	driverKube  = "kube"
)

var drivers = []string{driverNetns, driverKind, driverKube}

// standing is a lab that somebody brought up, or what is left of one.
type standing struct {
	name, driver string
	dir          string // its files on this host; "" if it has none
	kubeconfig   string // of a cluster
	cni          string // that was asked for; "" if none was
	gone         string // why it is no lab that stands; "" if it does

	attach func(context.Context) (*lab.Lab, error)
	down   func(context.Context) error // nil if `lab gc` is for it
}

func (s standing) stands() bool { return s.gone == "" }

// called reports whether s is what --lab names: its name, or that with the driver's in front.
func (s standing) called(name string) bool { return name == s.name || name == s.driver+"/"+s.name }

// labs lists the labs of every driver on this machine or, with --kubeconfig or --context, the one on that cluster.
func (a *app) labs(ctx context.Context) ([]standing, error) {
	if a.kubeconfig != "" || a.context != "" {
		s, err := a.kubeLab(ctx)
		return []standing{s}, err
	}
	all, err := netnsLabs()
	if err != nil {
		return nil, err
	}
	clusters, err := kind.Labs()
	if err != nil {
		return nil, err
	}
	for _, c := range clusters {
		all = append(all, kindLab(c))
	}
	slices.SortStableFunc(all, func(a, b standing) int { return cmp.Compare(a.name, b.name) })
	return all, nil
}

func netnsLabs() ([]standing, error) {
	roots, err := labdir.Roots(os.Getenv)
	if err != nil {
		return nil, err
	}
	labs, err := labdir.List(roots...)
	if err != nil {
		return nil, err
	}
	var all []standing
	for _, l := range labs {
		s := standing{
			name: l.Dir.Name(), driver: driverNetns, dir: string(l.Dir), gone: "gone; `lab gc` removes its files",
			attach: func(ctx context.Context) (*lab.Lab, error) { return attachNetns(ctx, l.Dir) },
		}
		if l.Stands {
			s.gone, s.down = "", func(ctx context.Context) error { return downNetns(ctx, l.Dir) }
		}
		all = append(all, s)
	}
	return all, nil
}

func kindLab(c kind.Lab) standing {
	return standing{
		name: c.Name, driver: driverKind, dir: c.Dir, kubeconfig: c.Kubeconfig, cni: c.CNI,
		gone: map[kind.State]string{
			kind.Owned: "in use by a process, without a lab just now",
			kind.Kept:  "an empty cluster, kept for the scenarios' next run; `lab gc --all` removes it",
			kind.Gone:  "gone; `lab gc` removes what is left of the cluster",
		}[c.State],
		attach: func(ctx context.Context) (*lab.Lab, error) { return kind.Attach(ctx, c.Name) },
		down:   func(ctx context.Context) error { return kind.Remove(ctx, c.Name) },
	}
}

// kubeLab is the lab on the cluster that --kubeconfig and --context choose: it has no other name.
func (a *app) kubeLab(ctx context.Context) (standing, error) {
	l, err := kube.Attach(ctx, kube.Options{Kubeconfig: a.kubeconfig, Context: a.context})
	if err != nil {
		return standing{}, err
	}
	a.leaving(l)
	return standing{
		name: l.Spec.Name, driver: driverKube, kubeconfig: a.kubeconfig,
		attach: func(context.Context) (*lab.Lab, error) { return l, nil },
		down:   l.Down,
	}, nil
}

// attach attaches to the lab that --lab names, or to the only one. It is given back when the command ends.
func (a *app) attach(ctx context.Context) (*lab.Lab, error) {
	s, err := a.find(ctx)
	if err != nil {
		return nil, err
	}
	return a.attachTo(ctx, s)
}

func (a *app) attachTo(ctx context.Context, s standing) (*lab.Lab, error) {
	l, err := s.attach(ctx)
	if err == nil {
		a.leaving(l)
	}
	return l, err
}

// leaving has the driver of a lab on a cluster end what it has running in this process, when the command ends.
func (a *app) leaving(l *lab.Lab) {
	if d, ok := l.Driver.(interface{ Leave() error }); ok {
		a.leave = append(a.leave, d.Leave)
	}
}

var errNoLab = errors.New("no lab stands: bring one up with `lab up`")

// find is the lab that --lab names, or the only one that stands.
func (a *app) find(ctx context.Context) (standing, error) {
	return a.findAmong(ctx, standing.stands)
}

// findAmong finds a lab by name among those that are fit for what is to be done.
func (a *app) findAmong(ctx context.Context, fit func(standing) bool) (standing, error) {
	labs, err := a.labs(ctx)
	if err != nil {
		return standing{}, err
	}
	var names []string
	var found []standing
	for _, s := range labs {
		if s.stands() {
			names = append(names, s.name)
		}
		if a.lab == "" && s.stands() || a.lab != "" && fit(s) && s.called(a.lab) {
			found = append(found, s)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1 && a.lab != "":
		return standing{}, usageError{err: fmt.Errorf("several labs are called %s: put the driver in front, %s", a.lab, qualified(found))}
	case len(found) > 1:
		return standing{}, usageError{err: fmt.Errorf("several labs stand, choose with --lab: %s", strings.Join(names, ", "))}
	case a.lab != "":
		return standing{}, fmt.Errorf("no lab %q stands; there are: %s", a.lab, orNone(names))
	}
	return standing{}, errNoLab
}

func qualified(labs []standing) string {
	var names []string
	for _, s := range labs {
		names = append(names, s.driver+"/"+s.name)
	}
	return strings.Join(names, " or ")
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func (a *app) down(ctx context.Context) error {
	s, err := a.findAmong(ctx, func(s standing) bool { return s.down != nil })
	if err != nil {
		return err
	}
	return s.down(ctx)
}
