// SPDX-License-Identifier: Apache-2.0

package pause

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// setUp prepares the namespaces of this process, of which the caller says which are its own.
func (b *builder) setUp(s *Setup) error {
	if s.Reaper {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("adopt orphans: %w", err)
		}
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	// Before the root changes: /proc/sys shows the namespaces of whoever looks, and it is writable only now.
	if err := writeSysctls(s.Sysctls); err != nil {
		return err
	}
	trees, err := openTrees(s.Binds)
	if err != nil {
		return err
	}
	defer trees.close()
	if s.Root != nil {
		if err := b.enterRoot(s.Root); err != nil {
			return err
		}
	}
	if err := b.attach(trees); err != nil {
		return err
	}
	return b.writeAll(s.Files)
}

func writeSysctls(list []Sysctl) error {
	for _, s := range list {
		path := filepath.Join("/proc/sys", strings.ReplaceAll(s.Name, ".", "/"))
		err := os.WriteFile(path, []byte(s.Value), 0)
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without the feature needs no setting
		}
		if err != nil {
			return fmt.Errorf("set sysctl %s=%s: %w", s.Name, s.Value, err)
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	return nil
}

// tree is a copy of a mount that is not attached anywhere yet, so that its source need not be visible any more.
type tree struct {
	fd      int
	target  string
	dir     bool
	private bool
}

type treeList []tree

func openTrees(binds []Bind) (treeList, error) {
	var list treeList
	for _, b := range binds {
		t, err := openTree(b)
		if err != nil {
			list.close()
			return nil, fmt.Errorf("bind %s: %w", b.Source, err)
		}
		list = append(list, t)
	}
	return list, nil
}

func openTree(b Bind) (tree, error) {
	info, err := os.Stat(b.Source)
	if err != nil {
		return tree{}, err
	}
	// Recursive, for in a user namespace a mount may not be copied without what is locked on top of it.
	fd, err := unix.OpenTree(unix.AT_FDCWD, b.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return tree{}, err
	}
	if b.ReadOnly {
		if err := readOnly(fd); err != nil {
			unix.Close(fd)
			return tree{}, err
		}
	}
	return tree{fd: fd, target: b.Target, dir: info.IsDir(), private: b.Private}, nil
}

func readOnly(fd int) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	return nil
}

func (l treeList) close() {
	for _, t := range l {
		unix.Close(t.fd)
	}
}

func (b *builder) attach(l treeList) error {
	for _, t := range l {
		target, err := b.mountPoint(t.target, t.dir)
		if err == nil {
			err = unix.MoveMount(t.fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		if err != nil {
			return fmt.Errorf("bind at %s: %w", t.target, err)
		}
		if t.private {
			if err := b.own.add(target); err != nil {
				return err
			}
		}
	}
	return nil
}
