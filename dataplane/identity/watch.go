// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long a burst of file events is gathered.
	settle = 10 * time.Millisecond
	// rewatch is how long a directory that cannot be watched is left alone.
	rewatch = time.Second
)

// watchDir calls changed once it watches dir, and after everything that happens in it, until ctx ends. A mounted ConfigMap
// or Secret changes by a link in the directory, a careful writer by a rename: what happens to a file itself says little.
func watchDir(ctx context.Context, dir string, log *slog.Logger, changed func()) {
	told := false
	for {
		err := watchOnce(ctx, dir, changed)
		if ctx.Err() != nil {
			return
		}
		if !told {
			log.Warn("directory cannot be watched; looking again and again", "directory", dir, "error", err, "every", rewatch.String())
			told = true
		}
		changed()
		t := time.NewTimer(rewatch)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

var errWatchEnded = errors.New("the watcher ended")

func watchOnce(ctx context.Context, dir string, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(dir); err != nil {
		return err
	}
	quiet := time.NewTimer(0)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return errWatchEnded
			}
			if e.Name == dir && e.Has(fsnotify.Remove) {
				return errWatchEnded
			}
			quiet.Reset(settle)
		case _, ok := <-w.Errors: // an overflow: look
			if !ok {
				return errWatchEnded
			}
			quiet.Reset(settle)
		case <-quiet.C:
			changed()
		}
	}
}
