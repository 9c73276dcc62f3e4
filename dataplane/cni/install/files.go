// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// replace writes a file so that a reader sees it whole, old or new, also after a crash; equal content is left alone.
func replace(path string, data []byte, mode fs.FileMode) (changed bool, err error) {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return false, nil
	}
	return true, swapIn(path, mode, func(f *os.File) error { _, err := f.Write(data); return err })
}

// swapIn makes a file beside path and renames it. Its name has no extension that a runtime would read.
func swapIn(path string, mode fs.FileMode, fill func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".ambient-cni-*")
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// program copies the plugin where it differs. A file that was compared is known by its inode and time from then on.
type program struct {
	from, to string
	compared [2]os.FileInfo // source and target, when they were equal
}

func (p *program) install() (changed bool, err error) {
	from, err := os.Stat(p.from)
	if err != nil {
		return false, fmt.Errorf("install the plugin: %w", err)
	}
	to, err := os.Stat(p.to)
	if err == nil && unchanged(p.compared[0], from) && unchanged(p.compared[1], to) {
		return false, nil
	}
	if err != nil || to.Size() != from.Size() || to.Mode().Perm() != 0o755 || !equal(p.from, p.to) {
		if err := p.copy(); err != nil {
			return false, fmt.Errorf("install the plugin: %w", err)
		}
		changed = true
	}
	if to, err = os.Stat(p.to); err != nil {
		return changed, fmt.Errorf("install the plugin: %w", err)
	}
	p.compared = [2]os.FileInfo{from, to}
	return changed, nil
}

func (p *program) copy() error {
	src, err := os.Open(p.from)
	if err != nil {
		return err
	}
	defer src.Close()
	return swapIn(p.to, 0o755, func(f *os.File) error { _, err := io.Copy(f, src); return err })
}

func unchanged(was, now os.FileInfo) bool {
	return was != nil && os.SameFile(was, now) && was.Size() == now.Size() && was.ModTime().Equal(now.ModTime()) && was.Mode() == now.Mode()
}

func equal(a, b string) bool {
	x, errX := os.ReadFile(a)
	y, errY := os.ReadFile(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// remove is content with a file that is not there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
