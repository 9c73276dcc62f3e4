// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

func testExec(t *testing.T, l *lab.Lab) {
	var out, errOut bytes.Buffer
	exit, err := l.Exec(within(t), web, []string{"sh", "-c", "cat; echo complaint >&2; exit 3"}, lab.Stdio{In: strings.NewReader("said"), Out: &out, Err: &errOut})
	if err != nil || exit != 3 || out.String() != "said" || errOut.String() != "complaint\n" {
		t.Errorf("exit %d, %v, stdout %q, stderr %q", exit, err, out.String(), errOut.String())
	}
	if exit, err := l.Exec(within(t), web, []string{"sh", "-c", "kill -TERM $$"}, lab.Stdio{}); err != nil || exit != 143 {
		t.Errorf("a process that a signal ended: exit %d, %v; want 143", exit, err)
	}
	for name, errno := range map[string]syscall.Errno{
		"no-such-thing": syscall.ENOENT, "/no/such/thing": syscall.ENOENT, "/etc/passwd": syscall.EACCES, "/etc": syscall.EACCES,
	} {
		_, err := l.Exec(within(t), web, []string{name}, lab.Stdio{})
		if refused := (*lab.StartError)(nil); !errors.As(err, &refused) || refused.Errno != errno || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want %v", name, err, errno)
		}
	}
	if _, err := l.Exec(within(t), lab.PodRef{Namespace: "shop", Name: "nobody"}, []string{"true"}, lab.Stdio{}); err == nil || !strings.Contains(err.Error(), "shop/nobody") {
		t.Errorf("a pod that is not there: %v", err)
	}
}

// What a command leaves behind keeps its streams open, but nobody waiting; what was printed by its end has arrived.
func testExecLeavesSomething(t *testing.T, l *lab.Lab) {
	for name, c := range map[string]struct {
		script string
		ctx    func() (context.Context, context.CancelFunc)
		want   error
	}{
		"it ends": {"setsid sleep 1000 & echo done", func() (context.Context, context.CancelFunc) { return context.WithCancel(within(t)) }, nil},
		"its caller gives up": {"setsid sleep 1000 & echo done; wait", func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(within(t), 2*time.Second)
		}, context.DeadlineExceeded},
	} {
		var out bytes.Buffer
		ctx, cancel := c.ctx()
		_, err := l.Exec(ctx, web, []string{"sh", "-c", c.script}, lab.Stdio{Out: &out})
		cancel()
		if !errors.Is(err, c.want) || out.String() != "done\n" {
			t.Errorf("%s: %v, %q; want %v and what it said", name, err, out.String(), c.want)
		}
	}
	if _, err := l.Output(within(t), web, "sh", "-c", "for p in /proc/[0-9]*; do grep -q sleep $p/comm && kill ${p#/proc/}; done; true"); err != nil {
		t.Error(err)
	}
}

func testExecKilled(t *testing.T, l *lab.Lab) {
	ctx, cancel := context.WithCancel(within(t))
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := l.Exec(ctx, web, []string{"sh", "-c", "echo started; sleep 1000 & wait"}, lab.Stdio{Out: w})
		done <- err
	}()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("exec after cancel: %v", err)
	}
	if log, err := os.ReadFile(labdir.Dir(l.Dir).Log("hold")); err != nil || strings.Contains(string(log), "canceled") {
		t.Errorf("the holder makes a fuss: %v\n%s", err, log)
	}
	eventually(t, "the process and its child are gone", func() bool {
		out, err := l.Output(within(t), web, "sh", "-c", "cat /proc/[0-9]*/comm")
		return err == nil && !strings.Contains(string(out), "sleep")
	})
}
