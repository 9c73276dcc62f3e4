// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// watch sees a file appear: made, moved there, or given a mode, as a socket is once it listens. It is good for one
// appearance: what it watches is the file's directory or, while that is not there, the nearest one above, and after any
// change in there somebody has to look anew where the path ends by then.
type watch struct {
	f    *os.File // an inotify instance
	next string   // the name in the watched directory that leads to the file
}

// newWatch watches from now on. The caller closes it.
func newWatch(path string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, os.NewSyscallError("inotify_init1", err))
	}
	w := &watch{f: os.NewFile(uintptr(fd), "inotify")}
	if err := w.follow(fd, filepath.Clean(path)); err != nil {
		w.close()
		return nil, fmt.Errorf("watch %s: %w", path, os.NewSyscallError("inotify_add_watch", err))
	}
	return w, nil
}

func (w *watch) follow(fd int, path string) error {
	const what = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	for at := path; ; {
		dir := filepath.Dir(at)
		_, err := unix.InotifyAddWatch(fd, dir, what)
		switch {
		case err == nil && at == path:
			w.next = filepath.Base(path)
			return nil
		case err == nil:
			w.next = filepath.Base(at)
			if _, err := os.Stat(at); errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err != nil {
				return err
			}
			at = path // it was made before the watch stood: begin again
		case errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir):
			at = dir
		default:
			return err
		}
	}
}

// wait blocks until the file may have appeared, for the time given, or until ctx ends. It reports whether it may have.
func (w *watch) wait(ctx context.Context, most time.Duration) bool {
	if w.f.SetReadDeadline(time.Now().Add(most)) != nil {
		return false
	}
	defer context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, 4096)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return false
		}
		if w.concerns(buf[:n]) {
			return true
		}
	}
}

// concerns reports whether one of the events is about what was waited for. An event without a name is about the directory
// itself, or says that events were lost.
func (w *watch) concerns(events []byte) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		head := events[:unix.SizeofInotifyEvent]
		events = events[unix.SizeofInotifyEvent:]
		length := min(int(binary.NativeEndian.Uint32(head[12:])), len(events)) // of the name, padded with zeros
		if name := string(bytes.TrimRight(events[:length], "\x00")); name == "" || name == w.next {
			return true
		}
		events = events[length:]
	}
	return false
}

func (w *watch) close() {
	if w != nil {
		w.f.Close()
	}
}
