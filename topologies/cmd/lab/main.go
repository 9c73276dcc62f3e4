// SPDX-License-Identifier: Apache-2.0

// Command lab brings up a mesh on this machine and lets people look into it: it runs commands and makes calls in its
// pods, shows logs, and draws the path of a call. It is also the program that a lab's own processes are made of: `lab
// hold` and `lab pause` are started by it alone. What a lab is, packages lab and netns know.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/hold"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
)

// exitError ends the program with a code that says all there is to say.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func main() {
	// Before anything is parsed or allocated: every pod of a lab has one of these.
	if len(os.Args) > 1 && os.Args[1] == "pause" {
		os.Exit(report(os.Stderr, pause.Serve(context.Background())))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(report(os.Stderr, err))
}

// report prints an error and turns it into an exit code: 1 for a failure, 2 for a mistake on the command line.
func report(stderr io.Writer, err error) int {
	var exit exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "lab: %v\nRun `lab --help` for what there is.\n", err)
		return 2
	}
	fmt.Fprintf(stderr, "lab: %v\n", err)
	return 1
}

// app is what every command shares.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	lab    string // --lab
	output string // -o
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// hold is the inside half of a lab.
func (a *app) hold(ctx context.Context, dir, bin string, detach bool) error {
	return hold.Run(ctx, hold.Config{Dir: labdir.Dir(dir), Bin: bin, Detached: detach})
}
