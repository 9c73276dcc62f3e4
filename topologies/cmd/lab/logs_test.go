// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
)

// labWithLogs is a lab that stands, as far as its files tell.
func labWithLogs(t *testing.T, logs map[string]string) labdir.Dir {
	t.Helper()
	dir := labdir.Dir(filepath.Join(emptyRoot(t), "one"))
	lock, err := dir.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if err := os.MkdirAll(dir.Logs(), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range logs {
		appendLog(t, dir, name, text)
	}
	return dir
}

func appendLog(t *testing.T, dir labdir.Dir, name, text string) {
	t.Helper()
	f, err := os.OpenFile(dir.Log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

const (
	ztunnelLog = `{"time":"2026-01-01T10:00:01Z","level":"info","message":"one"}
{"time":"2026-01-01T10:00:03.5Z","level":"info","message":"three and a half"}
`
	webLog = `time=2026-01-01T10:00:02Z level=INFO msg="two"
  of two
2026-01-01T10:00:03Z three
`
)

func TestLogsAreMergedByTime(t *testing.T) {
	labWithLogs(t, map[string]string{"ztunnel.node1": ztunnelLog, "shop.web": webLog, "control": "begins without a time\n"})
	for _, c := range []struct{ args, want string }{
		{"logs shop/web", webLog},
		{"logs shop/web ztunnel", `ztunnel.node1 | {"time":"2026-01-01T10:00:01Z","level":"info","message":"one"}
shop/web      | time=2026-01-01T10:00:02Z level=INFO msg="two"
shop/web      |   of two
shop/web      | 2026-01-01T10:00:03Z three
ztunnel.node1 | {"time":"2026-01-01T10:00:03.5Z","level":"info","message":"three and a half"}
`},
		{"logs shop/web ztunnel.node1 --since 2026-01-01T10:00:03Z", `shop/web      | 2026-01-01T10:00:03Z three
ztunnel.node1 | {"time":"2026-01-01T10:00:03.5Z","level":"info","message":"three and a half"}
`},
		{"logs control shop/web -o json --since 2026-01-01T10:00:03Z", `{"source":"shop/web","time":"2026-01-01T10:00:03Z","line":"2026-01-01T10:00:03Z three"}
`},
		{"logs ztunnel -o json --since 2026-01-01T10:00:02Z", `{"source":"ztunnel.node1","time":"2026-01-01T10:00:03.5Z","record":{"time":"2026-01-01T10:00:03.5Z","level":"info","message":"three and a half"}}
`},
		{"logs shop/web --since 1h", ""},
	} {
		code, out, errOut := runLab(t, strings.Fields(c.args)...)
		if diff := cmp.Diff(c.want, out); code != 0 || diff != "" {
			t.Errorf("lab %s: exit %d, %s (-want +got):\n%s", c.args, code, errOut, diff)
		}
	}
	if code, out, _ := runLab(t, "logs", "--all"); code != 0 || !strings.HasPrefix(out, "control       | begins") || strings.Count(out, "\n") != 6 {
		t.Errorf("--all: exit %d\n%s", code, out)
	}
	if code, _, errOut := runLab(t, "logs", "nobody"); code != 1 || !strings.Contains(errOut, "nobody") && !strings.Contains(errOut, "attach") {
		t.Errorf("a source that is not there: exit %d, %s", code, errOut)
	}
}

// buffer is a bytes.Buffer that one may look at while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) await(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if strings.Contains(b.String(), want) {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	t.Fatalf("no %q in\n%s", want, b.String())
}

// Following shows half a line only once it is whole, what comes from a log that is new, and from one that was replaced.
func TestLogsAreFollowed(t *testing.T) {
	dir := labWithLogs(t, map[string]string{"shop.web": webLog})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errOut buffer
	ended := make(chan int, 1)
	go func() {
		ended <- report(&errOut, run(ctx, []string{"logs", "--all", "-f", "--since", "2026-01-01T10:00:03Z"}, strings.NewReader(""), &out, &errOut))
	}()
	out.await(t, "shop/web | 2026-01-01T10:00:03Z three\n")
	appendLog(t, dir, "shop.web", "2026-01-01T10:00:04Z fo")
	appendLog(t, dir, "ztunnel.node1", ztunnelLog)
	out.await(t, "three and a half")
	appendLog(t, dir, "shop.web", "ur\n")
	out.await(t, "shop/web | 2026-01-01T10:00:04Z four\n")
	if err := os.Remove(dir.Log("shop.web")); err != nil {
		t.Fatal(err)
	}
	appendLog(t, dir, "shop.web", "2026-01-01T10:00:05Z another web\n")
	out.await(t, "another web")
	cancel()
	if code := <-ended; code != 0 || errOut.String() != "" || strings.Contains(out.String(), "two") {
		t.Errorf("exit %d, %s\n%s", code, errOut.String(), out.String())
	}
}

// When the lab ends, so does following.
func TestFollowingEndsWithTheLab(t *testing.T) {
	dir := labWithLogs(t, map[string]string{"shop.web": webLog})
	var out, errOut buffer
	ended := make(chan int, 1)
	go func() {
		ended <- report(&errOut, run(t.Context(), []string{"logs", "shop/web", "-f"}, strings.NewReader(""), &out, &errOut))
	}()
	out.await(t, "three")
	if err := os.RemoveAll(dir.Logs()); err != nil {
		t.Fatal(err)
	}
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("exit %d: %s", code, errOut.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
}
