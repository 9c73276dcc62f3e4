// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pair is two ends of a stream that holds what is on its way: both ends of SSH begin by writing.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return ends[0], ends[1]
}

// open is a session whose far end is this process too.
func open(t *testing.T) (s *Session, end func()) { return openWith(t, nil) }

func openWith(t *testing.T, direct Direct) (s *Session, end func()) {
	t.Helper()
	near, far := pair(t)
	served := make(chan error, 1)
	go func() { served <- Serve(far, far, direct); far.Close() }()
	s, err := Dial(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("the far end: %v", err)
		}
	})
	t.Cleanup(end)
	return s, end
}

func TestCommandsHaveTheirOwnStreamsAndExitCodes(t *testing.T) {
	s, _ := open(t)
	for _, c := range []struct {
		script, in, out, errOut string
		exit                    int
	}{
		{"echo out; echo err >&2; exit 3", "", "out\n", "err\n", 3},
		{"cat; echo \"$0 $1\"", "typed", "typeda b  c\n", "", 0},
		{"kill -KILL $$", "", "", "", 128 + int(syscall.SIGKILL)},
		{"sleep 10 >/dev/null 2>&1 & echo left", "", "left\n", "", 0},
	} {
		var out, errOut bytes.Buffer
		exit, err := s.Run(t.Context(), []string{"sh", "-c", c.script, "a", "b  c"}, strings.NewReader(c.in), &out, &errOut)
		if err != nil || exit != c.exit || out.String() != c.out || errOut.String() != c.errOut {
			t.Errorf("%s: exit %d, %v, %q, %q", c.script, exit, err, out.String(), errOut.String())
		}
	}
	if exit, err := s.Run(t.Context(), []string{"cat"}, nil, nil, nil); exit != 0 || err != nil {
		t.Errorf("without input: exit %d, %v", exit, err)
	}
	if _, err := s.Run(t.Context(), []string{"no-such-command"}, nil, nil, nil); err == nil || errors.Is(err, ErrEnded) {
		t.Errorf("a command that is not there: %v", err)
	}
}

func TestCommandsRunAtOnce(t *testing.T) {
	s, _ := open(t)
	fifo := t.TempDir() + "/fifo"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for _, script := range []string{"echo x >" + fifo, "cat " + fifo} { // each waits for the other
		all.Go(func() {
			if exit, err := s.Run(t.Context(), []string{"sh", "-c", script}, nil, nil, nil); exit != 0 || err != nil {
				t.Errorf("%s: exit %d, %v", script, exit, err)
			}
		})
	}
	all.Wait()
}

func TestOutputOfAnySizeIsWhole(t *testing.T) {
	s, _ := open(t)
	const size = 8 << 20 // more than a window
	var out bytes.Buffer
	exit, err := s.Run(t.Context(), []string{"head", "-c", "8388608", "/dev/zero"}, nil, &out, nil)
	if exit != 0 || err != nil || out.Len() != size {
		t.Errorf("exit %d, %v, %d bytes of %d", exit, err, out.Len(), size)
	}
}

func TestRunReturnsWhenItsCallerGivesUp(t *testing.T) {
	s, _ := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	started := writer(func(p []byte) { cancel() })
	if _, err := s.Run(ctx, []string{"sh", "-c", "echo started; sleep 1000"}, nil, started, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was canceled", err)
	}
	if exit, err := s.Run(t.Context(), []string{"true"}, nil, nil, nil); exit != 0 || err != nil {
		t.Errorf("control: the session goes on: exit %d, %v", exit, err)
	}
}

// TestRunReturnsFromAFarEndThatIsSilent: a process that was stopped, a network that lets nothing through.
func TestRunReturnsFromAFarEndThatIsSilent(t *testing.T) {
	near, far := pair(t)
	through, back := pair(t)
	go func() { _ = Serve(back, back, nil) }()
	silent := make(chan struct{})
	go func() { _, _ = io.Copy(far, through) }()
	go func() {
		for b := make([]byte, 1); ; {
			if _, err := far.Read(b); err != nil {
				return
			}
			select {
			case <-silent:
			default:
				if _, err := through.Write(b); err != nil {
					return
				}
			}
		}
	}()
	s, err := Dial(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); far.Close(); back.Close() })
	if exit, err := s.Run(t.Context(), []string{"true"}, nil, nil, nil); exit != 0 || err != nil {
		t.Fatalf("control: exit %d, %v", exit, err)
	}
	close(silent)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Run(ctx, []string{"true"}, nil, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the deadline", err)
	}
}

func TestAWriterThatFailsHoldsNobodyUp(t *testing.T) {
	s, _ := open(t)
	broken := errors.New("broken")
	exit, err := s.Run(t.Context(), []string{"head", "-c", "8388608", "/dev/zero"}, nil, failing{broken}, nil)
	if exit != 0 || !errors.Is(err, broken) {
		t.Errorf("exit %d, %v, want that it is broken", exit, err)
	}
}

type failing struct{ error }

func (f failing) Write([]byte) (int, error) { return 0, f.error }

func TestTheEndOfTheStreamEndsWhatRuns(t *testing.T) {
	s, end := open(t)
	running := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := s.Run(t.Context(), []string{"sh", "-c", "echo started; exec sleep 1000"}, nil, writer(func([]byte) { close(running) }), nil)
		ended <- err
	}()
	<-running
	end() // returns when the far end has, which waits for its commands
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a command that was killed ended well")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run does not return")
	}
	<-s.Done()
	if _, err := s.Run(t.Context(), []string{"true"}, nil, nil, nil); !errors.Is(err, ErrEnded) {
		t.Errorf("after the end: %v", err)
	}
}

func TestDialGivesUp(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, near); err == nil {
		t.Error("a session with nobody")
	}
}

type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// What there is a direct command for is not started itself; a direct one that does not start changes nothing.
func TestDirectCommands(t *testing.T) {
	s, _ := openWith(t, func(ctx context.Context, argv []string) *exec.Cmd {
		switch argv[len(argv)-1] {
		case "direct":
			return exec.CommandContext(ctx, "echo", "at once")
		case "broken":
			return exec.CommandContext(ctx, "/no/such/thing")
		}
		return nil
	})
	for last, want := range map[string]string{"direct": "at once\n", "broken": "the long way broken\n", "other": "the long way other\n"} {
		var out bytes.Buffer
		if exit, err := s.Run(t.Context(), []string{"echo", "the", "long", "way", last}, nil, &out, nil); exit != 0 || err != nil || out.String() != want {
			t.Errorf("%s: exit %d, %v: %q, want %q", last, exit, err, out.String(), want)
		}
	}
}
