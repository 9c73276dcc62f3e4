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

	"github.com/spf13/cobra"

	"github.com/ambientlab/ambientlab/kindconfigs/install"
	"github.com/ambientlab/ambientlab/kindconfigs/shapes"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/kind"
	"github.com/ambientlab/ambientlab/topologies/driver/kube"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

const (
	defaultTopology = "three-nodes"
	meshNamespace   = "istio-system"
)

type upOptions struct {
	topology, name string
	driver         string
	detach         bool
	tlsKeys        bool

	nodeImage string // kind
	cni       string // kind
	cniPolicy bool   // kind
	image     string // kube
	force     bool   // kube
}

func (a *app) upCommand() *cobra.Command {
	var o upOptions
	c := &cobra.Command{
		Use:   "up [TOPOLOGY]",
		Short: "Bring a lab up: a topology file, or a name of `lab topologies` (three-nodes)",
		Long: "Brings a lab up and keeps it until Ctrl-C. With --detach the lab stays until `lab down`.\n" +
			"Several labs may stand side by side, each under a name of its own.\n\n" +
			"--driver says in what: netns is Linux namespaces of this machine; kind is a kind cluster of its own, which needs Docker\n" +
			"and a node image (`make docker kind node-image`); kube is the cluster of --kubeconfig and --context, which must be marked\n" +
			"for labs (it says how) unless --force is given, and whose nodes must have --image or be able to pull it: `lab image -o`\n" +
			"makes it. There can be one lab on such a cluster. Of a lab on a cluster the kubeconfig's path is printed.\n\n" +
			"--cni gives a kind cluster another CNI than its node image's, which kindnet stands for: a project by name, a manifest by its\n" +
			"file or URL, or NAME=FILE, a project by a manifest of one's own. Its images come from where the manifest says, and nodes must\n" +
			"reach them. Cilium has a chart and no manifest: `--cni cilium` says how to make one.\n\n" +
			"It has no JSON form: what it says is for people; `lab list` and `lab ps` have one.",
		Annotations: map[string]string{noJSON: "what it says is for people"},
		Example: "  lab up\n  lab up two-nodes --detach --name mine\n  lab up my-topology.yaml\n  lab up two-nodes --driver kind --detach\n" +
			"  lab up --driver kind --cni flannel\n  lab up --driver kind --cni my-cni.yaml --cni-network-policy\n" +
			"  lab up --driver kube --kubeconfig cluster.conf",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeTopologies,
		RunE: func(c *cobra.Command, args []string) error {
			o.topology = defaultTopology
			if len(args) > 0 {
				o.topology = args[0]
			}
			if err := a.checkUp(c, o); err != nil {
				return mistake(c, err)
			}
			return a.up(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "the lab's name (the topology's by default)")
	f.StringVar(&o.driver, "driver", driverNetns, "what the lab is made of: "+strings.Join(drivers, ", "))
	f.BoolVar(&o.detach, "detach", false, "leave the lab standing")
	f.BoolVar(&o.tlsKeys, "tls-keys", false, "log the secrets of the mesh's TLS connections, for `lab capture --secrets`: as debug.tlsKeys in the topology (netns)")
	f.StringVar(&o.nodeImage, "node-image", kind.DefaultImage, "the image of the cluster's nodes (kind)")
	f.StringVar(&o.cni, "cni", "", "the cluster's CNI: "+shapes.ProjectNames()+", a manifest's file or URL, or NAME=FILE (kind)")
	f.BoolVar(&o.cniPolicy, "cni-network-policy", false, "the CNI of that file or URL enforces NetworkPolicy objects (kind)")
	f.StringVar(&o.image, "image", "", "the image of the mesh and its workloads (kube; default "+install.DefaultImage+")")
	f.BoolVar(&o.force, "force", false, "use a cluster that is not marked for labs (kube)")
	_ = c.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions(drivers, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// checkUp says which flags do not go together.
func (a *app) checkUp(c *cobra.Command, o upOptions) error {
	var errs []error
	if strings.ContainsAny(o.name, "/ ") || o.name == "." || o.name == ".." {
		errs = append(errs, fmt.Errorf("--name %q: want a plain name", o.name))
	}
	if !slices.Contains(drivers, o.driver) {
		errs = append(errs, fmt.Errorf("--driver %s: want %s", o.driver, strings.Join(drivers, ", ")))
	}
	for flag, driver := range map[string]string{
		"node-image": driverKind, "cni": driverKind, "cni-network-policy": driverKind, "image": driverKube, "force": driverKube, "kubeconfig": driverKube, "context": driverKube, "tls-keys": driverNetns,
	} {
		if c.Flags().Changed(flag) && o.driver != driver {
			errs = append(errs, fmt.Errorf("--%s means nothing to the driver %s, but to %s", flag, o.driver, driver))
		}
	}
	if o.driver == driverKube && o.name != "" {
		errs = append(errs, errors.New("--name: a lab on a cluster that stands is found by --kubeconfig and --context, it has no other name"))
	}
	return errors.Join(errs...)
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

// candidate is a lab that is to come up.
type candidate struct {
	lab.Driver
	up         lab.UpOptions
	kubeconfig func() string          // of a cluster; nil: it is none
	left       func() bool            // after an Up that failed: whether something was
	ended      func() <-chan struct{} // closed when a lab that stands has ended by itself; nil: nobody can tell
}

func (a *app) candidate(ctx context.Context, o upOptions) (*candidate, error) {
	switch o.driver {
	case driverKind:
		cni, err := kind.ReadCNI(ctx, o.cni, o.cniPolicy)
		if err != nil {
			return nil, err
		}
		d := kind.New(kind.Options{Image: o.nodeImage, CNI: cni, Detach: o.detach, Name: o.name, Progress: a.progress})
		return &candidate{Driver: d, kubeconfig: d.Kubeconfig, left: func() bool { return kindLeft(o.name) }}, nil
	case driverKube:
		d := kube.New(kube.Options{Kubeconfig: a.kubeconfig, Context: a.context, Image: o.image, Force: o.force, Progress: a.progress})
		return &candidate{Driver: d, kubeconfig: d.Kubeconfig, left: func() bool { return true }}, nil
	}
	return a.netnsCandidate(o)
}

// kindLeft reports whether there is a record of a cluster.
func kindLeft(name string) bool {
	labs, err := kind.Labs()
	return err != nil || slices.ContainsFunc(labs, func(l kind.Lab) bool { return l.Name == name })
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
	c, err := a.candidate(ctx, o)
	if err != nil {
		return err
	}
	started := time.Now()
	if err := c.Up(ctx, spec, c.up); err != nil {
		if ctx.Err() != nil && !c.left() {
			return errors.New("interrupted; the lab is down")
		}
		return err
	}
	pods, err := c.Pods(ctx)
	if err != nil {
		return errors.Join(err, c.Down(context.WithoutCancel(ctx)))
	}
	a.progress(fmt.Sprintf("lab %s stands: %d nodes, %s, up in %.1f s", o.name, len(spec.Clusters[0].Nodes), countPods(pods), time.Since(started).Seconds()))
	if err := a.introduce(ctx, c, spec, o); err != nil {
		return errors.Join(err, c.Down(context.WithoutCancel(ctx)))
	}
	if o.detach {
		a.leaving(&lab.Lab{Driver: c.Driver})
		return nil
	}
	return a.keep(ctx, c)
}

// keep waits for the lab's end, and sees to it.
func (a *app) keep(ctx context.Context, c *candidate) error {
	var ended <-chan struct{}
	if c.ended != nil {
		ended = c.ended()
	}
	select {
	case <-ctx.Done():
		a.progress("taking it down")
		return c.Down(context.WithoutCancel(ctx))
	case <-ended:
		return errors.New("the lab ended by itself, or somebody took it down")
	}
}

// countPods tells the topology's pods from those of the mesh itself, and both from a cluster's own.
func countPods(pods []lab.PodInfo) string {
	mesh, cluster := 0, 0
	for _, p := range pods {
		switch p.Namespace {
		case meshNamespace:
			mesh++
		case "kube-system", "local-path-storage":
			cluster++
		}
	}
	return fmt.Sprintf("%d pods and %d of the mesh", len(pods)-mesh-cluster, mesh)
}

// progress is for people: it is no part of the product on stdout.
func (a *app) progress(what string) { fmt.Fprintln(a.stderr, what) }
