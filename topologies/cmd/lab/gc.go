// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/ambientlab/ambientlab/topologies/driver/kind"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/programs"
)

func (a *app) gcCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "gc", Short: "Remove what is left of labs whose process is gone", Args: cobra.NoArgs,
		Long: "Removes the files of labs of namespaces whose holder is gone, and the kind clusters of processes that were killed. What\n" +
			"stands, it leaves alone; with --all it also removes the empty clusters that runs of the scenarios have kept for the next.",
		Example: "  lab gc\n  lab gc --all",
		RunE:    func(c *cobra.Command, _ []string) error { return a.gc(c.Context(), all) },
	}
	c.Flags().BoolVar(&all, "all", false, "remove empty kind clusters that are kept for the next run, too")
	return c
}

func (a *app) gc(ctx context.Context, all bool) error {
	roots, err := labdir.Roots(os.Getenv)
	if err != nil {
		return err
	}
	removed, err := labdir.Collect(roots...)
	clusters, clusterErr := collectClusters(ctx, all)
	removed, err = append(removed, clusters...), errors.Join(err, clusterErr)
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

func collectClusters(ctx context.Context, all bool) ([]string, error) {
	bin, err := programs.Dir("")
	if err != nil {
		return nil, err
	}
	removed, err := kind.Sweep(ctx, bin)
	if err != nil || !all {
		return removed, err
	}
	labs, err := kind.Labs()
	errs := []error{err}
	for _, l := range labs {
		if l.State != kind.Kept {
			continue
		}
		if err := kind.Remove(ctx, l.Name); err != nil {
			errs = append(errs, err)
		} else {
			removed = append(removed, l.Name)
		}
	}
	return removed, errors.Join(errs...)
}
