// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

const archive = ".tar.gz"

func (a *app) dumpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "dump [DIR|FILE" + archive + "]", Short: "Collect the evidence that a failed scenario leaves, from a lab that stands",
		Long: "Collects what is needed to understand a lab, into a directory or an archive: logs; links, routes, rules and sockets of\n" +
			"pods and nodes; each daemon's configuration, metrics, certificates without keys, and goroutines; objects, pods, topology\n" +
			"and versions; of a cluster also events, the journals of kubelet and containerd, and `kind export logs`. index.json says what is there and what could not be had; -o json prints it. Keys and tokens are taken out,\n" +
			"long files are cut. It exits with 1 if something could not be had.",
		Example:     "  lab dump\n  lab dump evidence\n  lab dump evidence" + archive + "\n  lab dump -o evidence" + archive,
		Annotations: map[string]string{outputs: "*" + archive + " *.tgz"},
		Args:        cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			to := ""
			if len(args) > 0 {
				to = args[0]
			}
			if isArchive(a.output) {
				if to != "" {
					return mistake(c, fmt.Errorf("dump: both %s and -o %s are given", to, a.output))
				}
				to = a.output
			}
			return a.dump(c.Context(), to)
		},
	}
}

func isArchive(name string) bool {
	return strings.HasSuffix(name, archive) || strings.HasSuffix(name, ".tgz")
}

func (a *app) dump(ctx context.Context, to string) error {
	s, err := a.find(ctx)
	if err != nil {
		return err
	}
	l, err := a.attachTo(ctx, s)
	if err != nil {
		return err
	}
	if to == "" {
		to = fmt.Sprintf("lab-dump-%s-%s", s.name, time.Now().Format("20060102-150405"))
	}
	sink, end, err := openSink(to)
	if err != nil {
		return err
	}
	index, lacking := l.Bundle(ctx, sink, lab.BundleOptions{Progress: a.progress})
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), end(false))
	}
	if err := end(true); err != nil {
		return err
	}
	size := 0
	for _, f := range index.Files {
		size += f.Bytes
	}
	if err := a.print(index, func() { fmt.Fprintf(a.stdout, "%s: %d files, %.1f MB\n", to, len(index.Files)+1, float64(size)/1e6) }); err != nil {
		return err
	}
	if lacking != nil {
		return fmt.Errorf("the dump lacks something: %w", lacking)
	}
	return nil
}

// openSink opens what a dump goes into, which must not be there yet. end keeps it, or removes what is half done.
func openSink(to string) (sink lab.Sink, end func(keep bool) error, err error) {
	if !isArchive(to) {
		if entries, err := os.ReadDir(to); err == nil && len(entries) > 0 {
			return nil, nil, usageError{err: fmt.Errorf("dump: %s is there already, and not empty", to), command: "dump"}
		}
		made := false
		if _, err := os.Stat(to); errors.Is(err, os.ErrNotExist) {
			made = true
		}
		return lab.DirSink(to), func(keep bool) error {
			if keep || !made {
				return nil
			}
			return os.RemoveAll(to)
		}, nil
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // evidence is for everyone to read
	if errors.Is(err, os.ErrExist) {
		return nil, nil, usageError{err: fmt.Errorf("dump: %s is there already", to), command: "dump"}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("dump: %w", err)
	}
	under := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(to), archive), ".tgz")
	tar := lab.NewTarSink(f, under)
	return tar, func(keep bool) error {
		err := closeAll(tar, f)
		if !keep || err != nil {
			err = errors.Join(err, os.Remove(to))
		}
		return err
	}, nil
}

func closeAll(all ...io.Closer) error {
	var errs []error
	for _, c := range all {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
