// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// execTerminal runs a command on a terminal of the pod. This program's own is raw meanwhile: every key goes there.
func (a *app) execTerminal(c *cobra.Command, pod string, argv []string) (err error) {
	in, ok := a.stdin.(*os.File)
	if !ok || !isTerminal(in) {
		return mistake(c, errors.New("exec: standard input is no terminal: run without -t"))
	}
	restore, err := makeRaw(in)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	sizes, stop := watchSize(in)
	defer stop()
	tty := &lab.Terminal{Size: sizeOf(in), Resize: sizes}
	return a.execWith(c.Context(), pod, argv, lab.Stdio{In: in, Out: a.stdout, TTY: tty})
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// makeRaw hands every key on as it is. restore undoes that.
func makeRaw(f *os.File) (restore func() error, err error) {
	fd := int(f.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("make terminal raw: %w", err)
	}
	return func() error {
		if err := term.Restore(fd, before); err != nil {
			return fmt.Errorf("restore terminal: %w", err)
		}
		return nil
	}, nil
}

// sizeOf is zero if the terminal does not know its size.
func sizeOf(f *os.File) lab.WindowSize {
	cols, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return lab.WindowSize{}
	}
	return lab.WindowSize{Rows: uint16(rows), Cols: uint16(cols)} //nolint:gosec // they are 16 bits wide in the kernel
}

// watchSize sends the terminal's size whenever it changes, until stop.
func watchSize(f *os.File) (<-chan lab.WindowSize, func()) {
	sizes, done := make(chan lab.WindowSize), make(chan struct{})
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-changed:
			}
			select {
			case <-done:
				return
			case sizes <- sizeOf(f):
			}
		}
	})
	return sizes, func() { signal.Stop(changed); close(done); wg.Wait() }
}
