// SPDX-License-Identifier: Apache-2.0

// Command control is the mesh's control plane: it reads a directory of Kubernetes objects, or an API server, serves what they
// mean over delta xDS, and signs workload certificates. `control ca` changes the authority's roots. What it does is package control's
// work; this one reads flags.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker for a release.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	var usage *usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "control:", err)
		return 2
	default:
		fmt.Fprintln(os.Stderr, "control:", err)
		return 1
	}
}

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() error { return e.err }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "ca" {
		return authority(ctx, args[1:], stdout, stderr)
	}
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if o.check {
		return check(ctx, o, stdout, stderr)
	}
	return serve(ctx, o, stderr)
}
