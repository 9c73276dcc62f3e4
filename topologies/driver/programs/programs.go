// SPDX-License-Identifier: Apache-2.0

// Package programs finds the project's own programs, which drivers start, or put into images. It starts none.
// Source: the project's design, section "Labs: one scenario, three worlds".
package programs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// MissingError says that parts of the project are not built.
type MissingError struct {
	Dir     string
	Missing []string
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("find binaries in %s: %s missing: run `make build`, or set AMBIENTLAB_BIN to where they are",
		e.Dir, strings.Join(e.Missing, ", "))
}

// Dir is the directory of the project's programs: bin if it is set, else $AMBIENTLAB_BIN, else where this program is.
func Dir(bin string) (string, error) {
	if bin == "" {
		bin = os.Getenv("AMBIENTLAB_BIN")
	}
	if bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find binaries: %w", err)
		}
		bin = filepath.Dir(exe)
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return "", fmt.Errorf("find binaries: %w", err)
	}
	return bin, nil
}

// Find is Dir, or a *MissingError if one of the named programs is not there.
func Find(bin string, names ...string) (string, error) {
	bin, err := Dir(bin)
	if err != nil {
		return "", err
	}
	var missing []string
	for _, name := range names {
		if unix.Access(filepath.Join(bin, name), unix.X_OK) != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return "", &MissingError{Dir: bin, Missing: missing}
	}
	return bin, nil
}
