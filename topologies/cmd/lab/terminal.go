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
	"golang.org/x/sys/unix"

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

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// makeRaw hands every key on as it is (termios(3), cfmakeraw). restore undoes that.
func makeRaw(f *os.File) (restore func() error, err error) {
	fd := int(f.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read terminal's mode: %w", err)
	}
	raw := *before
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("make terminal raw: %w", err)
	}
	return func() error {
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, before); err != nil {
			return fmt.Errorf("restore terminal: %w", err)
		}
		return nil
	}, nil
}

// sizeOf is zero if the terminal does not know its size.
func sizeOf(f *os.File) lab.WindowSize {
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return lab.WindowSize{}
	}
	return lab.WindowSize{Rows: w.Row, Cols: w.Col}
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
