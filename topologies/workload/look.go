// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"io/fs"
	"os"
)

// Look is what a pod sees at one path.
type Look struct {
	Exists  bool     `json:"exists"`
	Entries []string `json:"entries,omitempty"` // of a directory, sorted
	Error   string   `json:"error,omitempty"`   // why more could not be seen
}

// LookAt says what the calling process sees at each path. It reads no file's content.
func LookAt(paths []string) map[string]Look {
	out := make(map[string]Look, len(paths))
	for _, p := range paths {
		info, err := os.Stat(p)
		l := Look{Exists: err == nil}
		if err == nil && info.IsDir() {
			var entries []fs.DirEntry
			entries, err = os.ReadDir(p)
			for _, e := range entries {
				l.Entries = append(l.Entries, e.Name())
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.Error = err.Error()
		}
		out[p] = l
	}
	return out
}
