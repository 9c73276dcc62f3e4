// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// openPTY is a pseudo terminal: what a person sees and types on, and what programs have.
func openPTY(t *testing.T) (person, program *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	person = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

func termios(t *testing.T, f *os.File) *unix.Termios {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func setSize(t *testing.T, f *os.File, rows, cols uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

// see reads what the terminal shows until it shows want, and returns it.
func see(t *testing.T, person *os.File, want string) string {
	t.Helper()
	var shown strings.Builder
	buf := make([]byte, 4096)
	for end := time.Now().Add(20 * time.Second); !strings.Contains(shown.String(), want); {
		n, err := syscall.Read(int(person.Fd()), buf)
		switch {
		case n > 0:
			shown.Write(buf[:n])
		case errors.Is(err, syscall.EAGAIN) && time.Now().Before(end):
			fds := []unix.PollFd{{Fd: int32(person.Fd()), Events: unix.POLLIN}}
			_, _ = unix.Poll(fds, 100)
		default:
			t.Fatalf("no %q, %v, in\n%s", want, err, shown.String())
		}
	}
	return shown.String()
}

// A person at a terminal works in a pod: keys go there as they are, sizes follow, and the terminal is given back as it was,
// however it ends.
func testExecTerminal(t *testing.T) {
	person, program := openPTY(t)
	setSize(t, person, 40, 132)
	before := termios(t, program)
	start := func(args ...string) chan string {
		ended := make(chan string, 1)
		go func() {
			var errOut bytes.Buffer
			code := report(&errOut, run(t.Context(), append([]string{"exec", "-it", "web", "--"}, args...), program, program, &errOut))
			ended <- fmt.Sprintf("%d %s", code, errOut.String())
		}()
		return ended
	}
	ended := start("sh")
	see(t, person, "# ")
	if termios(t, program).Lflag&unix.ECHO != 0 {
		t.Error("this side of the terminal echoes too")
	}
	typeKeys(t, person, "stty size\n")
	see(t, person, "40 132")
	setSize(t, person, 50, 100)
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil { // it is not this process's controlling terminal
		t.Fatal(err)
	}
	for shown := ""; !strings.Contains(shown, "50 100"); { // as soon as the size has been passed on
		typeKeys(t, person, "stty size; echo end$((1))\n")
		shown = see(t, person, "end1")
	}
	typeKeys(t, person, "sh -c 'echo g$((0)); exec sleep 1000'\n")
	see(t, person, "g0\r\n")
	typeKeys(t, person, "\x03")
	typeKeys(t, person, "echo still $((40+2)); exit 7\n")
	see(t, person, "still 42")
	if got := <-ended; got != "7 " {
		t.Errorf("it ended with %s", got)
	}
	if diff := cmp.Diff(before, termios(t, program)); diff != "" {
		t.Errorf("the terminal was left changed (-before +after):\n%s", diff)
	}
	if got := <-start("no-such-command"); !strings.HasPrefix(got, "127 ") {
		t.Errorf("a command that is not there: %s", got)
	}
	if diff := cmp.Diff(before, termios(t, program)); diff != "" {
		t.Errorf("the terminal was left changed (-before +after):\n%s", diff)
	}
}

func typeKeys(t *testing.T, person *os.File, keys string) {
	t.Helper()
	if _, err := syscall.Write(int(person.Fd()), []byte(keys)); err != nil {
		t.Fatal(err)
	}
}
