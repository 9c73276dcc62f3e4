// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, content := range []string{"one\n", "", "two"} {
		if err := files([]string{"write", path}, strings.NewReader(content), nil); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := files([]string{"cat", path, path}, nil, &out); err != nil || out.String() != content+content {
			t.Errorf("read %q twice: %q, %v", content, out.String(), err)
		}
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("%v, %v: want the file alone", left, err)
	}
	for _, args := range [][]string{{"cat"}, {"write"}, {"write", path, path}, {"cat", path + "-not"}, {"write", path + "/below"}} {
		if err := files(args, strings.NewReader(""), &bytes.Buffer{}); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
