// SPDX-License-Identifier: Apache-2.0

// Command perf measures the mesh in a lab of its own on this machine and prints what it found: `perf bench`.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/ambientlab/ambientlab/perf"
	"github.com/ambientlab/ambientlab/perf/alone"
	"github.com/ambientlab/ambientlab/reports/schema"
)

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	var usage usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "perf:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "perf:", err)
		os.Exit(1)
	}
}

type options struct {
	perf.Options
	quick       bool
	cases       string
	modes       string
	output, out string
	strict      bool
}

const usageText = `Usage: perf bench [flags]

Measures plain TCP, two plain relays, two bare-TLS relays and two ztunnels in one lab, in turn, and prints medians of the
repeats, half of their range, and what they are to be measured by. An interrupt takes the lab down.

`

// asksForHelp says that what the program is about is what was asked for, and goes to stdout.
func asksForHelp(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return a == "-h" || a == "-help" || a == "--help" })
}

func parse(args []string, out io.Writer) (options, error) {
	o := options{Options: perf.Defaults()}
	fs := flag.NewFlagSet("perf bench", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprint(out, usageText)
		fs.PrintDefaults()
	}
	fs.IntVar(&o.Repeats, "repeats", o.Repeats, "rounds; each measures every case in every mode once")
	fs.DurationVar(&o.Duration, "duration", o.Duration, "length of one timed load")
	fs.StringVar(&o.cases, "cases", strings.Join(o.Cases, ","), "what to measure, separated by commas")
	fs.StringVar(&o.modes, "modes", "", "tcp, relays, tls, ztunnel; all if empty")
	fs.Func("env", "`NAME=value` for the ztunnels, repeatable", func(v string) error {
		o.Env = append(o.Env, v)
		return nil
	})
	fs.BoolVar(&o.quick, "quick", false, "less than a minute: few repeats, short loads, no 10 000 connections and no 100 000 workloads")
	fs.StringVar(&o.Bin, "bin", "", "`directory` of the project's binaries ($AMBIENTLAB_BIN, or where this program is)")
	fs.StringVar(&o.Revision, "revision", "", "of the code under test, for the document")
	fs.StringVar(&o.output, "o", "text", "what to print on stdout: text or json")
	fs.StringVar(&o.out, "out", "", "write the document to this `file` too")
	fs.BoolVar(&o.strict, "strict", false, "exit with 1 if a goal is missed")
	if len(args) == 0 || args[0] != "bench" {
		fs.Usage()
		if asksForHelp(args) {
			return o, flag.ErrHelp
		}
		return o, usageError{errors.New("the only command is `perf bench`")}
	}
	if err := fs.Parse(args[1:]); err != nil {
		return o, usageOr(err)
	}
	if fs.NArg() > 0 {
		return o, usageError{fmt.Errorf("unexpected argument %q", fs.Arg(0))}
	}
	if o.output != "text" && o.output != "json" {
		return o, usageError{fmt.Errorf("-o %s: want text or json", o.output)}
	}
	if o.quick {
		o.apply(fs)
	}
	o.Cases = strings.Split(o.cases, ",")
	if o.modes != "" {
		for m := range strings.SplitSeq(o.modes, ",") {
			o.Modes = append(o.Modes, perf.Mode(m))
		}
	}
	return o, nil
}

// apply takes what Quick says for everything that was not asked for by name.
func (o *options) apply(fs *flag.FlagSet) {
	set := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { set[f.Name] = true })
	q := perf.Quick()
	o.Small = q.Small
	if !set["repeats"] {
		o.Repeats = q.Repeats
	}
	if !set["duration"] {
		o.Duration = q.Duration
	}
}

func usageOr(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return err
	}
	return usageError{err}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == perf.AloneCommand { // started by this program alone
		return runAlone(ctx, args[1:], stdout, stderr)
	}
	help := stderr
	if asksForHelp(args) {
		help = stdout
	}
	o, err := parse(args, help)
	if err != nil {
		return err
	}
	o.Log = slog.New(slog.NewTextHandler(stderr, nil))
	doc, err := perf.Run(ctx, o.Options)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := doc.Encode(&b); err != nil {
		return err
	}
	if o.out != "" {
		if err := errors.Join(os.MkdirAll(filepath.Dir(o.out), 0o755), os.WriteFile(o.out, b.Bytes(), 0o644)); err != nil { //nolint:gosec // results are for everyone
			return fmt.Errorf("write results: %w", err)
		}
	}
	if o.output == "json" {
		_, err = stdout.Write(b.Bytes())
	} else {
		err = perf.Print(stdout, doc)
	}
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return verdict(o, doc)
}

func verdict(o options, doc schema.BenchResults) error {
	if !o.strict {
		return nil
	}
	var missed []string
	for _, g := range doc.Goals {
		if !g.Met {
			missed = append(missed, g.Name)
		}
	}
	if len(missed) > 0 {
		return fmt.Errorf("%d goals missed: %s", len(missed), strings.Join(missed, "; "))
	}
	return nil
}

func runAlone(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var o alone.Options
	fs := flag.NewFlagSet("perf "+perf.AloneCommand, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.Ztunnel, "ztunnel", "", "the binary")
	fs.IntVar(&o.Workloads, "workloads", 0, "how many it is told of")
	fs.IntVar(&o.Pods, "pods", 0, "how many it serves")
	fs.BoolVar(&o.XDS, "xds", false, "by a control plane")
	fs.DurationVar(&o.Settle, "settle", 0, "how long after it is ready it is looked at")
	if err := fs.Parse(args); err != nil {
		return usageOr(err)
	}
	return alone.Serve(ctx, o, stdout)
}
