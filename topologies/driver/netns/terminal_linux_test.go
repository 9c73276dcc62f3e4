// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// screen is what a terminal has shown.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func newScreen() *screen { return &screen{more: make(chan struct{}, 1)} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(p)
	select {
	case s.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) await(ctx context.Context, t *testing.T, want string) {
	t.Helper()
	for !strings.Contains(s.String(), want) {
		select {
		case <-s.more:
		case <-ctx.Done():
			t.Fatalf("no %q on the screen:\n%s", want, s)
		}
	}
}

// A command on a terminal is in a session of its own, on a terminal of the pod; it sees sizes change, and keys that signal.
func testTerminal(t *testing.T, l *lab.Lab) {
	ctx := within(t)
	web := lab.PodRef{Namespace: "shop", Name: "web"}
	keys, in := io.Pipe()
	out, sizes := newScreen(), make(chan lab.WindowSize)
	type result struct {
		exit int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		tty := &lab.Terminal{Size: lab.WindowSize{Rows: 40, Cols: 132}, Resize: sizes}
		exit, err := l.Exec(ctx, web, []string{"sh"}, lab.Stdio{In: keys, Out: out, TTY: tty})
		done <- result{exit, err}
	}()
	key := func(text string) {
		if _, err := io.WriteString(in, text); err != nil {
			t.Error(err)
		}
	}
	key("tty; stty size\n")
	out.await(ctx, t, "/dev/pts/0")
	out.await(ctx, t, "40 132")
	sizes <- lab.WindowSize{Rows: 50, Cols: 100}
	key("stty size\n")
	out.await(ctx, t, "50 100")
	key("sh -c 'echo g$((0)); exec sleep 1000'\n")
	out.await(ctx, t, "g0\r\n")
	key("\x03") // reaches sleep, not the shell
	key("echo still $((40+2))\n")
	out.await(ctx, t, "still 42")
	key("exit 7\n")
	if r := <-done; r.exit != 7 || r.err != nil {
		t.Errorf("exit %d, %v\n%s", r.exit, r.err, out)
	}
	in.Close()

	// Without a terminal there is none.
	var plain strings.Builder
	if exit, err := l.Exec(ctx, web, []string{"tty"}, lab.Stdio{Out: &plain}); exit != 1 || err != nil || !strings.Contains(plain.String(), "not a tty") {
		t.Errorf("tty without a terminal: exit %d, %v, %s", exit, err, plain.String())
	}
	var start *lab.StartError
	if _, err := l.Exec(ctx, web, []string{"no-such-command"}, lab.Stdio{TTY: &lab.Terminal{}}); !errors.As(err, &start) || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a command that is not there: %v", err)
	}
	testTerminalOfFiles(ctx, t, l, web)
}

// Keys from a file, as this program's own terminal is one, and a caller that gives up.
func testTerminalOfFiles(ctx context.Context, t *testing.T, l *lab.Lab, pod lab.PodRef) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := newScreen()
	if _, err := w.WriteString("echo from a $((20+1))\nexit 3\n"); err != nil {
		t.Fatal(err)
	}
	if exit, err := l.Exec(ctx, pod, []string{"sh"}, lab.Stdio{In: r, Out: out, TTY: &lab.Terminal{}}); exit != 3 || err != nil || !strings.Contains(out.String(), "from a 21") {
		t.Errorf("exit %d, %v\n%s", exit, err, out)
	}
	w.Close()

	out = newScreen()
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := l.Exec(short, pod, []string{"sh", "-c", "echo begun; exec sleep 4242"}, lab.Stdio{Out: out, TTY: &lab.Terminal{}})
		done <- err
	}()
	out.await(ctx, t, "begun")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up: %v", err)
	}
	gone := func() bool {
		exit, err := l.Exec(ctx, pod, []string{"sh", "-c", "! grep -q 424[2] /proc/[0-9]*/cmdline"}, lab.Stdio{})
		return err == nil && exit == 0
	}
	for end := time.Now().Add(budget); !gone(); {
		if time.Now().After(end) {
			t.Fatal("what it ran is still there")
		}
	}
}
