// SPDX-License-Identifier: Apache-2.0

// Package file is the source that reads a directory of YAML or JSON files and watches it. Files under status/<owner>/
// are partial objects: their annotations and their status are merged over the object of the same key. Producers write
// to a hidden name and rename, so that nobody reads half a file. It judges single objects, never what they mean together.
// Sources: Kubernetes API conventions; inotify(7).
package file

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// How long a burst of file events is gathered: until it pauses for settle, but never longer than settleMax.
const (
	settle    = 5 * time.Millisecond
	settleMax = 50 * time.Millisecond
)

// lookEvery is how often a directory is read that cannot be watched.
const lookEvery = 100 * time.Millisecond

// Source reads one directory. Make it with New.
type Source struct {
	dir string
	log *slog.Logger

	ready chan struct{}

	tree    *tree                             // owned by Run
	watcher func() (*fsnotify.Watcher, error) // set once

	mu       sync.Mutex // guards what follows
	objects  *source.Objects
	changed  chan struct{}
	problems []source.Problem
}

var _ source.Source = (*Source)(nil)

// New prepares to read dir; it does no I/O. log may be nil.
func New(dir string, log *slog.Logger) *Source {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Source{
		dir: dir, log: log, ready: make(chan struct{}), tree: newTree(dir), watcher: fsnotify.NewWatcher,
		objects: &source.Objects{}, changed: make(chan struct{}),
	}
}

// Read reads dir once. Its error says that dir cannot be read at all; what is wrong with single objects is in the
// problems, and those objects are left out.
func Read(dir string) (*source.Objects, []source.Problem, error) {
	t := newTree(dir)
	if _, err := t.rescan(nil); err != nil {
		return nil, nil, err
	}
	return (*source.Objects)(nil).With(t.changes()), t.problems(), nil
}

// Ready implements source.Source.
func (s *Source) Ready() <-chan struct{} { return s.ready }

// Load implements source.Source.
func (s *Source) Load() *source.Objects {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects
}

// Changed implements source.Source.
func (s *Source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Problems implements source.Source.
func (s *Source) Problems() []source.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problems
}

// Run implements source.Source. It may be called once.
func (s *Source) Run(ctx context.Context) error {
	w, err := s.watcher()
	if errors.Is(err, syscall.EMFILE) { // every user has a number of them (fs.inotify.max_user_instances), and others use them too
		s.log.Warn("directory cannot be watched, looking again and again", "dir", s.dir, "err", err, "every", lookEvery.String())
		return s.look(ctx)
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", s.dir, err)
	}
	defer w.Close()
	if _, err := s.tree.rescan(w.Add); err != nil {
		return err
	}
	s.publish()
	close(s.ready)
	return s.watch(ctx, w)
}

// look reads the directory again and again.
func (s *Source) look(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		changed, err := s.catchUp()
		if err != nil {
			return err
		}
		if changed || first {
			s.publish()
		}
		if first {
			close(s.ready)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// catchUp reads until nothing has changed since the reading before: what one finds may be newer than what it had passed by then,
// and changes are told in their order.
func (s *Source) catchUp() (changed bool, err error) {
	for {
		more, err := s.tree.rescan(nil)
		if err != nil || !more {
			return changed, err
		}
		changed = true
	}
}

func (s *Source) watch(ctx context.Context, w *fsnotify.Watcher) error {
	dirty := newBatch()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-w.Events:
			if !ok {
				return fmt.Errorf("watch %s: the watcher stopped", s.dir)
			}
			if s.note(dirty, ev) {
				quiet.Reset(dirty.wait(time.Now()))
			}
		case err := <-w.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				s.log.Warn("watching reported an error, reading everything again", "dir", s.dir, "err", err)
			}
			dirty.all = true
			quiet.Reset(dirty.wait(time.Now()))
		case <-quiet.C:
			if err := s.apply(dirty, w); err != nil {
				return err
			}
			dirty = newBatch()
		}
	}
}

// note records what an event makes worth reading again; false if nothing.
func (s *Source) note(b *batch, ev fsnotify.Event) bool {
	rel, err := filepath.Rel(s.dir, ev.Name)
	if err != nil || hidden(rel) || ev.Op == fsnotify.Chmod {
		return false
	}
	if s.tree.dirs[rel] {
		b.all = true
		return true
	}
	if !readable(rel) {
		// A new directory, or a file that is none of ours.
		fi, err := os.Stat(ev.Name)
		if err != nil || !fi.IsDir() {
			return false
		}
		b.all = true
		return true
	}
	b.files[rel] = true
	return true
}

func (s *Source) apply(b *batch, w *fsnotify.Watcher) error {
	changed := false
	if b.all {
		var err error
		if changed, err = s.tree.rescan(w.Add); err != nil {
			return err
		}
	} else {
		for rel := range b.files {
			changed = s.tree.read(rel, true) || changed
		}
	}
	if changed {
		s.publish()
	}
	return nil
}

// publish makes one new snapshot of everything that changed since the last one.
func (s *Source) publish() {
	changes, problems := s.tree.changes(), s.tree.problems()
	s.mu.Lock()
	before := s.problems
	s.problems = problems
	if len(changes) > 0 || !source.SameProblems(before, problems) { // control says on an object that it was refused
		s.objects = s.objects.With(changes)
		close(s.changed)
		s.changed = make(chan struct{})
	}
	s.mu.Unlock()
	source.Report(s.log, before, problems)
}

// batch is what events since the last reading made worth reading again.
type batch struct {
	files map[string]bool // paths below the directory
	all   bool
	since time.Time
}

func newBatch() *batch { return &batch{files: map[string]bool{}} }

func (b *batch) wait(now time.Time) time.Duration {
	if b.since.IsZero() {
		b.since = now
	}
	return min(settle, max(0, settleMax-now.Sub(b.since)))
}

func hidden(rel string) bool {
	for part := range strings.SplitSeq(rel, string(filepath.Separator)) {
		if strings.HasPrefix(part, ".") && part != "." {
			return true
		}
	}
	return false
}

func readable(rel string) bool {
	switch filepath.Ext(rel) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}
