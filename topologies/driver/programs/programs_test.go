// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFindNamesAllThatIsMissing(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"ztunnel": 0o755, "notes": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("AMBIENTLAB_BIN", dir)
	if got, err := Find("", "ztunnel"); err != nil || got != dir {
		t.Errorf("%q, %v", got, err)
	}
	var missing *MissingError
	if _, err := Find("", "ztunnel", "notes", "cni/ptp"); !errors.As(err, &missing) {
		t.Fatalf("%v, want a MissingError", err)
	}
	if diff := cmp.Diff([]string{"notes", "cni/ptp"}, missing.Missing); diff != "" {
		t.Error(diff)
	}
}
