// SPDX-License-Identifier: Apache-2.0

package pause

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// store keeps the content of files that cover others. It is on a tmpfs of this init's own mount namespace.
const store = "/run/.lab"

// A builder arranges the mounts of this process's namespace.
type builder struct {
	own    own
	stored int // files and directories in the store
}

func newBuilder() *builder { return &builder{own: own{}} }

func (b *builder) storePath() string {
	b.stored++
	return filepath.Join(store, strconv.Itoa(b.stored))
}

func (b *builder) writeAll(files []File) error {
	for _, f := range files {
		if err := b.place(f); err != nil {
			return fmt.Errorf("place %s: %w", f.Path, err)
		}
	}
	return nil
}

// place writes f where its path leads to. Where that is the host's read-only tree, the file is covered by a private one.
func (b *builder) place(f File) error {
	path, err := follow(f.Path)
	if err != nil {
		return err
	}
	mode := os.FileMode(f.Mode)
	if mode == 0 {
		mode = 0o644
	}
	if b.own.holds(filepath.Dir(path)) {
		return writeFile(path, f.Content, mode)
	}
	copied := b.storePath()
	if err := writeFile(copied, f.Content, mode); err != nil {
		return err
	}
	target, err := b.mountPoint(path, false)
	if err != nil {
		return err
	}
	return unix.Mount(copied, target, "", unix.MS_BIND, "")
}

// writeFile replaces the file in one step: somebody may be reading it.
func writeFile(path, content string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	next := path + ".next"
	if err := os.WriteFile(next, []byte(content), mode); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// follow resolves symbolic links, of a path whose end need not exist.
func follow(path string) (string, error) {
	for range 40 {
		target, err := os.Readlink(path)
		if err != nil {
			break // not a link, or not there
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	dir, rest := filepath.Dir(path), filepath.Base(path)
	for {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if !errors.Is(err, os.ErrNotExist) || dir == "/" {
			return "", err
		}
		dir, rest = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rest)
	}
}

// own lists the file systems that this init made for its own mount namespace: all others are the host's.
type own map[uint64]bool

func (o own) add(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	o[st.Dev] = true
	return nil
}

// holds reports whether the nearest directory that exists is on a file system of ours.
func (o own) holds(dir string) bool {
	for {
		var st unix.Stat_t
		err := unix.Stat(dir, &st)
		if err == nil {
			return o[st.Dev]
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			return false
		}
		dir = filepath.Dir(dir)
	}
}

// mountPoint makes sure that there is something at path to mount upon.
func (b *builder) mountPoint(path string, dir bool) (string, error) {
	path, err := follow(path)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(path); err == nil {
		if info.IsDir() != dir {
			return "", fmt.Errorf("%s is not what is to be mounted there", path)
		}
		return path, nil
	}
	if !b.own.holds(filepath.Dir(path)) {
		if err := b.shadow(filepath.Dir(path)); err != nil {
			return "", err
		}
	}
	if dir {
		return path, os.MkdirAll(path, 0o755)
	}
	return path, writeFile(path, "", 0o644)
}

// shadow covers dir with a private directory that shows the same entries, so that others can be added. Whatever is below
// stays as it is.
func (b *builder) shadow(dir string) error {
	for _, err := os.Stat(dir); err != nil; _, err = os.Stat(dir) {
		dir = filepath.Dir(dir) // the nearest that exists; the rest can be made in its shadow
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("shadow %s: %w", dir, err)
	}
	source, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("shadow %s: %w", dir, err)
	}
	defer unix.Close(source)
	behind := b.storePath()
	if err := os.MkdirAll(behind, 0o755); err != nil {
		return fmt.Errorf("shadow %s: %w", dir, err)
	}
	if err := unix.MoveMount(source, "", unix.AT_FDCWD, behind, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("shadow %s: %w", dir, err)
	}
	if err := b.mountPrivate(dir, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Symlink(filepath.Join(behind, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("shadow %s: %w", dir, err)
		}
	}
	return nil
}
