// SPDX-License-Identifier: Apache-2.0

// Command control is the mesh's control plane: it reads a directory of Kubernetes objects, serves what they mean over
// delta xDS, and signs workload certificates. What it does is package control's work; this one reads flags.
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

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	var usage *usageError
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "control:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "control:", err)
		os.Exit(1)
	}
}

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() error { return e.err }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if o.check {
		return check(o, stdout)
	}
	return serve(ctx, o, stderr)
}
