// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// saved is what the name of a file ends with whose list took its place.
const saved = ".before-ambient"

// candidate is a file that a runtime would read.
type candidate struct {
	path    string
	list    bool
	mode    fs.FileMode
	network *network
}

// candidates are the networks of a directory, the one that counts first: runtimes take the first file by name (libcni's
// ConfFiles). Files that cannot be used come back as errors.
func candidates(dir string) (out []candidate, bad []error, err error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, ext) {
			continue
		}
		c := candidate{path: filepath.Join(dir, e.Name()), list: ext == ".conflist"}
		info, err := os.Stat(c.path)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		c.mode = info.Mode().Perm()
		data, err := os.ReadFile(c.path)
		if err == nil {
			c.network, err = parseNetwork(data, c.list)
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", c.path, err))
			continue
		}
		out = append(out, c)
	}
	slices.SortStableFunc(out, candidate.before)
	return out, bad, nil
}

// before is the order of names, but that a file whose list took its place, and that is there again, goes before the list: it is
// what its owner wants now.
func (c candidate) before(d candidate) int {
	order := func(c candidate) string {
		if !c.list && exists(c.path+saved) {
			return c.listPath()
		}
		return c.path + "\x01"
	}
	return strings.Compare(order(c), order(d))
}

// listPath is where the list is that takes the place of a file that is none.
func (c candidate) listPath() string {
	return strings.TrimSuffix(c.path, filepath.Ext(c.path)) + ".conflist"
}

// chainInto puts entry into c's chain, and returns the path that has it.
func (c candidate) chainInto(entry *object) (path string, changed bool, err error) {
	if changed, err = c.network.chain(entry); err != nil {
		return "", false, fmt.Errorf("chain the plugin into %s: %w", c.path, err)
	}
	if c.list {
		if changed {
			_, err = replace(c.path, c.network.file(), c.mode)
		}
		return c.path, changed, err
	}
	// The file would hide a list of the same name, and only a list can have a chain: the list takes its place.
	path = c.listPath()
	if other, err := os.ReadFile(path); err == nil {
		if n, err := parseNetwork(other, true); err == nil && !n.has(entry.text("type")) {
			return "", false, fmt.Errorf("chain the plugin into %s: %s is there, too, and somebody else's: remove one of them", c.path, path)
		}
	}
	if _, err := replace(path, c.network.file(), c.mode); err != nil {
		return "", false, err
	}
	return path, true, os.Rename(c.path, c.path+saved)
}

// unchain takes the plugin out of a file.
func (c candidate) unchain(plugin string) (changed bool, err error) {
	if !c.list || !c.network.has(plugin) {
		return false, nil
	}
	c.network.drop(plugin)
	if len(c.network.plugins) == 0 {
		return true, remove(c.path)
	}
	return replace(c.path, c.network.file(), c.mode)
}

// restore gives files back their place that lists have taken, unless somebody has changed the list since.
func restore(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+saved))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		original := strings.TrimSuffix(path, saved)
		list := strings.TrimSuffix(original, filepath.Ext(original)) + ".conflist"
		before, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		now, err := os.ReadFile(list)
		n, bad := parseNetwork(before, false)
		switch {
		case err != nil || bad != nil || !same(now, n.file()) || exists(original):
			errs = append(errs, remove(path))
		default:
			errs = append(errs, os.Rename(path, original), remove(list))
		}
	}
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
