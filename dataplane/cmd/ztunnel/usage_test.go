// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Whatever variable the code reads, --help names.
func TestHelpNamesEveryVariable(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, nil, &out, &out); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`\be\.[a-zA-Z]+\("([A-Z][A-Z0-9_]+)"`)
	found := 0
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllSubmatch(src, -1) {
			found++
			if !bytes.Contains(out.Bytes(), m[1]) {
				t.Errorf("--help does not name %s, which %s reads", m[1], f)
			}
		}
	}
	if found < 50 {
		t.Errorf("only %d variables found in the code: the pattern no longer fits", found)
	}
}
