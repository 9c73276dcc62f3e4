// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenUnder opens the namespace that path names for a process whose root directory is root, absolute links in it included. proc
// is where that process's /proc is seen from here: what lies in it are no files, and root's own links to it lead nowhere.
func OpenUnder(root, proc, path string) (*NS, error) {
	if rest, ok := strings.CutPrefix(path, "/proc/"); ok {
		return Open(proc + "/" + rest)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: root directory %s: %w", path, root, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s under %s: %w", path, root, err)
	}
	n, err := FromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s under %s: %w", path, root, err)
	}
	return n, nil
}
