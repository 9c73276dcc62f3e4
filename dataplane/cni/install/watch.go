// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// How often everything is looked at without an event: where events come, and where they cannot, such as in a directory that is
// not there yet, or on a host that has no watch left to give.
const (
	rarely = 30 * time.Second
	often  = 2 * time.Second
)

// watcher waits for changes in directories. It belongs to one goroutine.
type watcher struct {
	log    *slog.Logger
	notify *fsnotify.Watcher // nil: there is none
	blind  bool              // some directory is not watched
	told   bool
}

func newWatcher(log *slog.Logger) *watcher {
	w := &watcher{log: log}
	var err error
	if w.notify, err = fsnotify.NewWatcher(); err != nil {
		w.notify = nil
		w.log.Warn("files are not watched; looking again and again (is fs.inotify.max_user_instances exhausted?)", "error", err, "every", often.String())
	}
	return w
}

func (w *watcher) close() {
	if w.notify != nil {
		_ = w.notify.Close()
	}
}

// follow watches dirs and no others.
func (w *watcher) follow(dirs []string) {
	if w.notify == nil {
		return
	}
	w.blind = false
	for _, dir := range w.notify.WatchList() {
		if !slices.Contains(dirs, dir) {
			_ = w.notify.Remove(dir)
		}
	}
	for _, dir := range dirs {
		if err := w.notify.Add(dir); err != nil { // one that is watched already is not watched twice
			w.blind = true
			if !w.told {
				w.log.Warn("directory is not watched; looking again and again", "directory", dir, "error", err, "every", often.String())
			}
			w.told = true
		}
	}
}

// wait waits for a change, or for a while; false: ctx has ended.
func (w *watcher) wait(ctx context.Context) bool {
	period := rarely
	var events chan fsnotify.Event
	var errs chan error
	if w.notify != nil {
		events, errs = w.notify.Events, w.notify.Errors
	}
	if w.notify == nil || w.blind {
		period = often
	}
	t := time.NewTimer(period)
	defer t.Stop()
	for soon := false; ; {
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		case <-errs: //nolint:errcheck // an overflow, whatever it says
			return true
		case <-events:
			if !soon { // later ones prolong nothing: a busy directory must not hold this up
				soon = true
				t.Reset(settle)
			}
		}
	}
}
