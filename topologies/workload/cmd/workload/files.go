// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// files reads and writes files of the pod, in which there need be no shell: `cat FILE...`, and `write FILE`, which replaces the
// file by what stands on stdin, as a whole.
func files(args []string, stdin io.Reader, stdout io.Writer) error {
	switch {
	case args[0] == "cat" && len(args) > 1:
		for _, path := range args[1:] {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if _, err := stdout.Write(text); err != nil {
				return err
			}
		}
		return nil
	case args[0] == "write" && len(args) == 2:
		return replace(args[1], stdin)
	}
	return usageError{fmt.Errorf("%s: want a file\n%s", args[0], usage)}
}

func replace(path string, content io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".write-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error says more
	}
	return err
}
