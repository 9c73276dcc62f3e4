// SPDX-License-Identifier: Apache-2.0

// Command capture records the packets of the network namespace that it is started in and writes them to its standard output as
// pcapng. Lab drivers start it inside a namespace. On standard error it says "ready" before which no packet counts, and in its
// last line {"packets":n,"drops":n}. SIGTERM, SIGINT, or the end of a pipe that is its standard input make it finish.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/topologies/wire"
)

// errUsage is a mistake of the caller.
var errUsage = errors.New("usage")

func main() { os.Exit(status()) }

func status() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintln(os.Stderr, "capture:", err)
	if errors.Is(err, errUsage) {
		return 2
	}
	return 1
}

func run(ctx context.Context, args []string, stdin *os.File, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("capture", flag.ContinueOnError)
	flags.SetOutput(stderr)
	intf := flags.String("interface", wire.AnyInterface, "interface to record on")
	text := flags.String("filter", "", "packets to record: "+wire.FilterSyntax)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errUsage, flags.Arg(0))
	}
	filter, err := wire.ParseFilter(*text)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unwatch, err := endWith(stdin, cancel)
	if err != nil {
		return err
	}
	defer unwatch()
	stats, err := wire.Record(ctx, stdout, wire.RecordOptions{
		Interface: *intf, Filter: filter, Ready: func() { fmt.Fprintln(stderr, "ready") },
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(stderr).Encode(stats)
}

// endWith calls stop when stdin ends, if it is a pipe or socket whose other end somebody holds: the null device and files end at
// once, and a terminal is watched by its signals. unwatch waits for whom it started.
func endWith(stdin *os.File, stop func()) (unwatch func(), err error) {
	info, err := stdin.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at standard input: %w", err)
	}
	if info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return func() {}, nil
	}
	// Only a file in the poller can be closed while it is being read.
	fd, err := unix.FcntlInt(stdin.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate standard input: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make standard input non-blocking: %w", err)
	}
	own := os.NewFile(uintptr(fd), "standard input")
	var reading sync.WaitGroup
	reading.Go(func() {
		_, _ = io.Copy(io.Discard, own)
		stop()
	})
	return func() {
		own.Close()
		reading.Wait()
	}, nil
}
