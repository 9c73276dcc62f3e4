// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func watchFor(t *testing.T, path string) *watch {
	t.Helper()
	w, err := newWatch(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWatchSeesAFileAppearWhereverItsPathBegins(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "run", "ztunnel", "s")
	for _, step := range []struct {
		what string
		do   func() error
		sees bool
	}{
		{"another directory is made", func() error { return os.Mkdir(filepath.Join(root, "tmp"), 0o755) }, false},
		{"a directory of the path is made", func() error { return os.MkdirAll(filepath.Dir(path), 0o755) }, true},
		{"another file is made", func() error { return os.WriteFile(path+"2", nil, 0o600) }, false},
		{"the file is made", func() error { return os.WriteFile(path, nil, 0o600) }, true},
		{"its mode is set", func() error { return os.Chmod(path, 0o644) }, true},
		{"it is removed", func() error { return os.Remove(path) }, false},
		{"another is moved there", func() error { return os.Rename(path+"2", path) }, true},
		{"its directory is removed", func() error { return os.RemoveAll(filepath.Dir(path)) }, true},
		{"all is made anew", func() error { return os.MkdirAll(path, 0o755) }, true},
	} {
		w := watchFor(t, path)
		must(t, step.do())
		most := 10 * time.Second
		if !step.sees {
			most = 20 * time.Millisecond
		}
		if got := w.wait(t.Context(), most); got != step.sees {
			t.Errorf("%s: seen %v", step.what, got)
		}
	}
}

func TestWatchNeedsADirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if w, err := newWatch(filepath.Join(file, "s")); err == nil {
		w.close()
		t.Error("below a file, there is nothing to watch")
	}
}

// An agent that comes must not be found by a timer: here the timer never goes off.
// told is a log that tells when something is in it.
type told chan struct{}

func (c told) Write(p []byte) (int, error) {
	select {
	case c <- struct{}{}:
	default:
	}
	return len(p), nil
}

// A path that cannot be watched: as where a user has no inotify instance left, there are no events.
func TestClientLooksWhereItCannotWatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(dir, nil, 0o600))
	path := filepath.Join(dir, "ztunnel.sock")
	r, tried := newRecorder(), make(told, 1)
	background(t, NewClient(ClientConfig{
		Path: path, Handler: r, Log: slog.New(slog.NewTextHandler(tried, nil)), BackoffMin: time.Hour, BackoffMax: time.Hour,
	}).Run)
	<-tried
	must(t, os.Remove(dir))
	background(t, NewServer(ServerConfig{Path: path, Snapshot: func() []Entry { return nil }, Log: quiet}).Run)
	r.expect(t, "snapshot")
}

func TestClientNoticesAnAgentThatComes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "not", "yet", "ztunnel.sock")
	config := ServerConfig{Path: path, Snapshot: func() []Entry { return nil }, Log: quiet}
	r := newRecorder()
	background(t, NewClient(ClientConfig{Path: path, Handler: r, Log: quiet, BackoffMin: time.Hour, BackoffMax: time.Hour}).Run)
	for range 3 {
		stop := background(t, NewServer(config).Run)
		r.expect(t, "snapshot")
		stop()
		r.expect(t, "disconnected")
		must(t, os.RemoveAll(filepath.Dir(filepath.Dir(path))))
	}
}
