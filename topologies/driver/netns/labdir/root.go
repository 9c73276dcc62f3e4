// SPDX-License-Identifier: Apache-2.0

package labdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Root is where labs keep their directories: $AMBIENTLAB_DIR, or below $XDG_STATE_HOME or the home directory.
func Root(getenv func(string) string) (string, error) {
	roots := configured(getenv)
	if len(roots) == 0 {
		return "", errors.New("find the labs' directory: set AMBIENTLAB_DIR, for there is no HOME")
	}
	return filepath.Abs(roots[0].dir)
}

// root is a directory of labs; below is there before it is.
type root struct{ dir, below string }

// configured are the roots that the environment names, the one that counts first.
func configured(getenv func(string) string) []root {
	var roots []root
	if dir := getenv("AMBIENTLAB_DIR"); dir != "" {
		roots = append(roots, root{dir, filepath.Dir(dir)})
	}
	if state := getenv("XDG_STATE_HOME"); state != "" {
		roots = append(roots, root{filepath.Join(state, "ambientlab"), state})
	}
	if home := getenv("HOME"); home != "" {
		roots = append(roots, root{filepath.Join(home, ".local", "state", "ambientlab"), home})
	}
	return roots
}

// Known are all directories in which labs may lie that this environment knows of, not only the one that counts. Those that
// could come to be are made, so that they can be hidden before there is something in them.
func Known(getenv func(string) string) []string {
	known := []string{shortRoot()}
	for _, r := range configured(getenv) {
		if _, err := os.Stat(r.below); err == nil {
			_ = os.MkdirAll(r.dir, 0o700) // who may not has no labs there either
		}
		if dir, err := filepath.Abs(r.dir); err == nil {
			known = append(known, dir)
		}
	}
	return known
}

// shortRoot takes the labs of a user whose home has a path too long for sockets.
func shortRoot() string { return fmt.Sprintf("/tmp/ambientlab-%d", os.Geteuid()) }

// Roots are all directories in which labs of this user may lie: Root, and the one that New falls back to.
func Roots(getenv func(string) string) ([]string, error) {
	root, err := Root(getenv)
	if err != nil {
		return nil, err
	}
	if getenv("AMBIENTLAB_DIR") == "" && private(shortRoot()) == nil {
		return []string{root, shortRoot()}, nil
	}
	return []string{root}, nil
}

// New is the directory of the lab name: below Root or, if its path is too long for the lab's socket and nobody asked for
// just that root, below a short one in /tmp.
func New(getenv func(string) string, name string) (Dir, error) {
	root, err := Root(getenv)
	if err != nil {
		return "", err
	}
	d, err := At(filepath.Join(root, name))
	if err == nil || getenv("AMBIENTLAB_DIR") != "" {
		return d, err
	}
	short := shortRoot()
	if err := os.Mkdir(short, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make labs' directory: %w", err)
	}
	if err := private(short); err != nil {
		return "", err
	}
	return At(filepath.Join(short, name))
}

// private checks that a directory in /tmp, where anybody may make one, is this user's alone.
func private(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("use %s: it is not a directory of this user alone: remove it, or set AMBIENTLAB_DIR", dir)
	}
	return nil
}

// owned checks that only this user can put something into a lab's directory: the holder writes to it, as root perhaps.
func owned(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("use %s: it is not a directory that this user alone may write to: choose another", dir)
	}
	return nil
}
