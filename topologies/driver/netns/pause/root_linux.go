// SPDX-License-Identifier: Apache-2.0

package pause

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// devices of the host that a pod may use; the rest of /dev is not in it.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// enterRoot makes a read-only copy of the host's tree this process's root. An ordinary user may do that too, in a user
// namespace, as long as the copy is recursive: parts of a tree that were mounted together are locked together.
func (b *builder) enterRoot(r *Root) error {
	if err := stageRoot(r.Staging); err != nil {
		return err
	}
	if err := stageProc(filepath.Join(r.Staging, "proc")); err != nil {
		return err
	}
	if err := stageSys(filepath.Join(r.Staging, "sys")); err != nil {
		return err
	}
	if err := b.stageDevices(filepath.Join(r.Staging, "dev")); err != nil {
		return err
	}
	if err := pivot(r.Staging); err != nil {
		return err
	}
	for _, dir := range []string{"/tmp", "/run", "/var/run", "/var/tmp"} {
		if err := b.coverPrivate(dir); err != nil {
			return err
		}
	}
	for _, dir := range r.Hide {
		if err := hide(dir); err != nil {
			return err
		}
	}
	return nil
}

func stageRoot(staging string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("copy root: %w", err)
	}
	defer unix.Close(fd)
	if err := readOnly(fd); err != nil {
		return fmt.Errorf("copy root: %w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, staging, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("stage root at %s: %w", staging, err)
	}
	return nil
}

// What of /proc is the whole host's: container runtimes (runc's default specification) let pods read the first, as this
// lab's do, and see nothing of the second. A user namespace has no right to most of it anyhow.
var (
	procReadOnly = []string{"sys", "bus", "fs", "irq", "sysrq-trigger"}
	procCovered  = []string{"acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi"}
)

// stageProc mounts a /proc of this process's PID namespace, as little writable as in a container.
func stageProc(target string) error {
	if err := unix.Mount("proc", target, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	for _, name := range procReadOnly {
		if err := bindReadOnly(filepath.Join(target, name)); err != nil {
			return err
		}
	}
	for _, name := range procCovered {
		if err := cover(filepath.Join(target, name)); err != nil {
			return err
		}
	}
	return nil
}

// bindReadOnly makes a part of /proc read-only, if it is there.
func bindReadOnly(path string) error {
	err := unix.Mount(path, path, "", unix.MS_BIND, "")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("", path, "", flags, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

// cover puts nothing in the place of a file or directory, if it is there.
func cover(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cover %s: %w", path, err)
	}
	if info.IsDir() {
		return hide(path)
	}
	if err := unix.Mount(os.DevNull, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: %w", path, err)
	}
	return nil
}

// stageSys mounts a /sys that shows the links of this network namespace. Where something covers parts of the host's, as in
// a container, an ordinary user may not; the host's own stays then, read-only.
func stageSys(target string) error {
	err := unix.Mount("sysfs", target, "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	return stageCgroups(filepath.Join(target, "fs", "cgroup"))
}

// stageCgroups shows the host's cgroups, in which Go's runtime looks for its share of the processors.
func stageCgroups(target string) error {
	t, err := openTree(Bind{Source: "/sys/fs/cgroup", ReadOnly: true})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bind cgroups: %w", err)
	}
	defer unix.Close(t.fd)
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("bind cgroups: %w", err)
	}
	return nil
}

func (b *builder) stageDevices(dev string) error {
	if err := b.mountPrivate(dev, 0o755); err != nil {
		return err
	}
	for _, name := range devices {
		node, target := filepath.Join("/dev", name), filepath.Join(dev, name)
		if _, err := os.Stat(node); err != nil {
			continue
		}
		if err := os.WriteFile(target, nil, 0o666); err != nil {
			return fmt.Errorf("make device %s: %w", name, err)
		}
		if err := unix.Mount(node, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind device %s: %w", name, err)
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return fmt.Errorf("make device %s: %w", name, err)
		}
	}
	pts := filepath.Join(dev, "pts")
	if err := os.Mkdir(pts, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", pts, err)
	}
	if err := unix.Mount("devpts", pts, "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return fmt.Errorf("mount devpts: %w", err)
	}
	shm := filepath.Join(dev, "shm")
	if err := os.Mkdir(shm, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", shm, err)
	}
	return b.mountPrivate(shm, 0o1777)
}

// pivot makes newRoot the root and lets go of the old one. Both are stacked at "/" in between, so that no directory has
// to exist for the old one (pivot_root(2), "pivot_root(".", ".")").
func pivot(newRoot string) error {
	if err := os.Chdir(newRoot); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root to %s: %w", newRoot, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	return os.Chdir("/")
}

// coverPrivate mounts an empty directory of this pod's own at dir; one that is missing, or leads to one that is covered
// already, is passed over.
func (b *builder) coverPrivate(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) || (err == nil && real != dir) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cover %s: %w", dir, err)
	}
	mode := uint32(0o755)
	if info, err := os.Stat(dir); err == nil && info.Mode()&os.ModeSticky != 0 {
		mode = 0o1777
	}
	return b.mountPrivate(dir, mode)
}

func (b *builder) mountPrivate(dir string, mode uint32) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=%o", mode)); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", dir, err)
	}
	return b.own.add(dir)
}

// hide covers dir with an empty directory that nobody can write to.
func hide(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil // covered with its parent
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0,size=4k"); err != nil {
		return fmt.Errorf("hide %s: %w", dir, err)
	}
	return nil
}
