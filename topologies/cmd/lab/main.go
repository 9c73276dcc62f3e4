// SPDX-License-Identifier: Apache-2.0

// Command lab brings up a mesh, in namespaces of this machine or on a Kubernetes cluster, and lets people look into it: it runs
// commands and makes calls in its pods, shows logs, and draws the path of a call. It is also the program that holds a lab of
// namespaces: `lab hold` is started by it and by drivers alone. What a lab is, packages lab and those of the drivers know.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
)

// exitError ends the program with a code that says all there is to say.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// failure is an error with an exit code of its own.
type failure struct {
	code int
	err  error
}

func (f failure) Error() string { return f.err.Error() }
func (f failure) Unwrap() error { return f.err }

// usageError is a mistake on the command line.
type usageError struct {
	err     error
	command string // whose help says more; "" is the program's
}

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func main() {
	ctx, stop := untilSignal(context.Background())
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(report(os.Stderr, err))
}

// signalled is why a context ended.
type signalled struct{ syscall.Signal }

func (s signalled) Error() string { return s.String() }

// untilSignal ends its context with the first signal, and tells which one it was. stop must be called.
func untilSignal(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case s := <-signals:
			cancel(signalled{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	})
	return ctx, func() { signal.Stop(signals); cancel(nil); wg.Wait() }
}

// report prints an error and turns it into an exit code: 1 for a failure, 2 for a mistake on the command line.
func report(stderr io.Writer, err error) int {
	var exit exitError
	var usage usageError
	var failed failure
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "lab: %v\nRun `%s --help` for what there is.\n", err, strings.TrimSpace("lab "+usage.command))
		return 2
	case errors.As(err, &failed):
		fmt.Fprintf(stderr, "lab: %v\n", err)
		return failed.code
	}
	fmt.Fprintf(stderr, "lab: %v\n", err)
	return 1
}

// app is what every command shares.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	lab        string // --lab
	kubeconfig string // --kubeconfig
	context    string // --context
	output     string // -o

	leave []func() error // when the command ends
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	for _, leave := range a.leave {
		if left := leave(); left != nil {
			err = errors.Join(err, left)
		}
	}
	return unlessSignalled(ctx, err)
}

// unlessSignalled is err, but for what a signal cut short a shell's exit code: whoever sent it knows why.
func unlessSignalled(ctx context.Context, err error) error {
	var sig signalled
	if errors.Is(err, context.Canceled) && errors.As(context.Cause(ctx), &sig) {
		return exitError(128 + int(sig.Signal))
	}
	return err
}
