// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
)

// WatchRoots calls changed whenever the content of a bundle of roots has become another, until ctx ends. What stands there
// when it begins is no change. A file that is not there or is no bundle is no change either: it is being replaced.
func WatchRoots(ctx context.Context, path string, log *slog.Logger, changed func()) {
	f := &rootsFile{path: path, log: log, changed: changed}
	watchDir(ctx, filepath.Dir(path), log, f.look)
}

type rootsFile struct {
	path    string
	log     *slog.Logger
	changed func()
	last    []byte
}

func (f *rootsFile) look() {
	data, err := os.ReadFile(f.path)
	if err != nil || bytes.Equal(data, f.last) {
		return
	}
	if roots, err := parseCertificates(data); err != nil || len(roots) == 0 {
		f.log.Warn("bundle of roots is no bundle; the last good one is kept", "file", f.path, "error", err)
		return
	}
	if f.last != nil {
		f.changed()
	}
	f.last = data
}

// Watch reloads the authority when its store changes, until ctx ends, and calls changed when something is different. What is
// wrong with the store is logged, and changes nothing.
func (a *Authority) Watch(ctx context.Context, log *slog.Logger, changed func()) {
	var problem string
	a.store.Watch(ctx, log, func() {
		different, err := a.Reload(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil && err.Error() != problem:
			problem = err.Error()
			log.Error("authority's files are bad; what was good before stays in force", "store", a.store.String(), "error", err)
		case err == nil:
			problem = ""
		}
		if different {
			changed()
		}
	})
}
