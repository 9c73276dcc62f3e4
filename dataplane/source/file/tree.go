// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// tree is what is known of a directory: its files, what they hold, and which keys wait to be published.
type tree struct {
	root  string
	files map[string]*entry // by path below root
	dirs  map[string]bool   // watched directories, by path below root; "." is root itself

	holders map[source.Key]map[string]bool // which files hold documents of a key
	stale   map[source.Key]bool            // keys whose documents changed since the last changes()
	clashes map[source.Key][]source.Problem
}

type entry struct {
	info     fs.FileInfo
	docs     []document
	problems []source.Problem
}

func newTree(root string) *tree {
	return &tree{
		root: root, files: map[string]*entry{}, dirs: map[string]bool{},
		holders: map[source.Key]map[string]bool{}, stale: map[source.Key]bool{}, clashes: map[source.Key][]source.Problem{},
	}
}

// rescan walks everything, but reads only files that are not what they were. watch is told every directory before its
// files are listed, so that no file falls between the listing and the watching; it may be nil.
func (t *tree) rescan(watch func(dir string) error) (changed bool, err error) {
	seen, dirs := map[string]bool{}, map[string]bool{}
	err = filepath.WalkDir(t.root, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(t.root, path)
		if relErr != nil {
			return relErr
		}
		switch {
		case err != nil && rel == ".":
			return err
		case errors.Is(err, fs.ErrNotExist) || hidden(rel):
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case err != nil:
			return err
		case d.IsDir():
			dirs[rel] = true
			if watch != nil {
				if err := watch(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("watch %s: %w", path, err)
				}
			}
		case readable(rel):
			seen[rel] = true
			changed = t.read(rel, false) || changed
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("read objects: %w", err)
	}
	t.dirs = dirs
	for rel := range t.files {
		if !seen[rel] {
			changed = t.read(rel, false) || changed
		}
	}
	return changed, nil
}

// read brings one file up to date; it reports whether objects or problems may have changed. A file that seems to be what
// it was is only read if an event told of it: two writes in place may fall into one tick of the file system's clock.
func (t *tree) read(rel string, told bool) bool {
	path := filepath.Join(t.root, rel)
	old := t.files[rel]
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err == nil && !told && old != nil && old.info != nil && same(old.info, info) {
		return false
	}
	next := &entry{info: info}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if old == nil {
			return false
		}
		delete(t.files, rel)
		t.replace(rel, old, &entry{})
		return true
	case err == nil:
		var data []byte
		if data, err = os.ReadFile(path); err == nil {
			parse(next, rel, data, old)
		}
	}
	if err != nil {
		next.info = nil // read it again next time
		next.problems = append(next.problems, source.Problem{File: rel, Err: err})
		if old != nil {
			next.docs = old.docs
		}
	}
	t.files[rel] = next
	if old == nil {
		old = &entry{}
	}
	t.replace(rel, old, next)
	return true
}

func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// replace updates the index of keys and marks those whose documents differ.
func (t *tree) replace(rel string, old, next *entry) {
	before := map[source.Key]source.Object{}
	for _, d := range old.docs {
		before[d.key] = d.obj
	}
	for _, d := range next.docs {
		if was, ok := before[d.key]; !ok || was != d.obj {
			t.stale[d.key] = true
		}
		delete(before, d.key)
		if t.holders[d.key] == nil {
			t.holders[d.key] = map[string]bool{}
		}
		t.holders[d.key][rel] = true
	}
	for key := range before {
		t.stale[key] = true
		delete(t.holders[key], rel)
		if len(t.holders[key]) == 0 {
			delete(t.holders, key)
		}
	}
}

// changes merges every key whose documents changed since the last call; nil removes.
func (t *tree) changes() map[source.Key]source.Object {
	out := make(map[source.Key]source.Object, len(t.stale))
	for key := range t.stale {
		out[key] = t.merge(key)
	}
	clear(t.stale)
	return out
}

func (t *tree) merge(key source.Key) source.Object {
	var base source.Object
	var baseFile string
	var parts []source.Object
	delete(t.clashes, key)
	for _, rel := range slices.Sorted(maps.Keys(t.holders[key])) {
		for _, d := range t.files[rel].docs {
			switch {
			case d.key != key:
			case d.partial:
				parts = append(parts, d.obj)
			case base != nil:
				t.clashes[key] = append(t.clashes[key], source.Problem{File: rel, Key: key, Err: fmt.Errorf("%s has this object already, and wins", baseFile)})
			default:
				base, baseFile = d.obj, rel
			}
		}
	}
	if base == nil {
		return nil
	}
	// A status that names another UID is that of an object of the same name that is gone.
	parts = slices.DeleteFunc(parts, func(p source.Object) bool { return p.GetUID() != "" && p.GetUID() != base.GetUID() })
	kind, _ := source.KindOf(key.Kind)
	return kind.Merge(base, parts)
}

func (t *tree) problems() []source.Problem {
	var out []source.Problem
	for _, e := range t.files {
		out = append(out, e.problems...)
	}
	for _, c := range t.clashes {
		out = append(out, c...)
	}
	slices.SortStableFunc(out, func(a, b source.Problem) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return strings.Compare(a.Error(), b.Error())
	})
	return out
}
