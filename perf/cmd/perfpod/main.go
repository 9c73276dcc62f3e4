// SPDX-License-Identifier: Apache-2.0

// Command perfpod is what measurements run inside pods: `perfpod serve`, `perfpod relay` and `perfpod load`, driven over
// standard input by command perf, which is the one for people.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/ambientlab/ambientlab/perf/pod"
)

var errUsage = errors.New("usage: perfpod serve|relay|load [flags]")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, errUsage), errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "perfpod:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out, stderr io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	var ports pod.Ports
	fs := flag.NewFlagSet("perfpod "+args[0], flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.IntVar(&ports.First, "port", 7000, "first `port` to listen on")
	fs.IntVar(&ports.Count, "ports", 1, "how many ports, one after the other")
	kind := fs.String("kind", pod.RelayPlain, "plain, tls-client or tls-server")
	procs := fs.Int("procs", runtime.GOMAXPROCS(0), "GOMAXPROCS")
	targets := fs.String("targets", "", "relay to these `host:port`s, one for each port, separated by commas")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	runtime.GOMAXPROCS(*procs)
	switch args[0] {
	case "serve":
		return pod.Serve(ctx, ports, in, out)
	case "relay":
		return pod.Relay(ctx, *kind, ports, strings.Split(*targets, ","), in, out)
	case "load":
		return pod.Generate(ctx, in, out)
	}
	return errUsage
}
