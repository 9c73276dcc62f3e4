// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
)

// runLab runs the program on a directory of labs of its own.
func runLab(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = report(&errOut, run(t.Context(), args, strings.NewReader(""), &out, &errOut))
	return code, out.String(), errOut.String()
}

func emptyRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	t.Setenv("AMBIENTLAB_DIR", root)
	return root
}

func TestExitCodes(t *testing.T) {
	emptyRoot(t)
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	err := os.WriteFile(bad, []byte(`apiVersion: ambientlab.dev/v1alpha1
kind: Topology
name: Bad_Name
clusters:
- nodes: [{name: n1}]
  ipFamily: v4
  workloads:
  - {name: a, namespace: nope, node: n9, colour: red}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		want []string // on either stream
	}{
		{"", 2, []string{"no command"}},
		{"frob", 2, []string{`"frob"`}},
		{"up --frob", 2, []string{"--frob"}},
		{"-o xml ps", 2, []string{"text or json"}},
		{"exec web", 2, []string{"exec"}},
		{"exec web --", 2, []string{"no command"}},
		{"up a b", 2, []string{"up"}},
		{"up two-pods --name a/b", 2, []string{"plain name"}},
		{"up no-such-topology", 1, []string{"no-such-topology", "three-nodes"}},
		{"check " + bad, 1, []string{
			"name:", "clusters[0].ipFamily:", "clusters[0].workloads[0].namespace:", "clusters[0].workloads[0].node:", "clusters[0].workloads[0].colour:",
		}},
		{"check two-pods", 0, []string{"two-pods is good"}},
		{"topologies", 0, []string{"three-nodes", "two-pods"}},
		{"topologies -o json", 0, []string{`"Name": "two-pods"`}},
		{"ps", 0, []string{"no lab stands"}},
		{"ps -o json", 0, []string{"[]"}},
		{"gc", 0, nil},
		{"down", 1, []string{"no lab stands"}},
		{"--lab x call web http://cart", 1, []string{`"x"`}},
		{"logs web", 1, []string{"no lab stands"}},
		{"hold", 1, []string{"lab up"}},
		{"--help", 0, []string{"up", "down", "trace"}},
	} {
		code, out, errOut := runLab(t, strings.Fields(c.args)...)
		if code != c.code {
			t.Errorf("lab %s: exit %d, want %d\n%s%s", c.args, code, c.code, out, errOut)
		}
		for _, want := range c.want {
			if !strings.Contains(out+errOut, want) {
				t.Errorf("lab %s: no %q in\n%s%s", c.args, want, out, errOut)
			}
		}
	}
}

func TestMissingBinariesNameTheCure(t *testing.T) {
	emptyRoot(t)
	t.Setenv("AMBIENTLAB_BIN", t.TempDir())
	code, _, errOut := runLab(t, "up", "two-pods")
	if code != 1 || !strings.Contains(errOut, "ztunnel") || !strings.Contains(errOut, "make build") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestPsAndGcTellLabsFromFiles(t *testing.T) {
	root := emptyRoot(t)
	dead := labdir.Dir(filepath.Join(root, "dead"))
	lock, err := dead.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if _, out, _ := runLab(t, "ps"); !strings.Contains(out, "dead") || !strings.Contains(out, "gc") {
		t.Errorf("ps: %s", out)
	}
	if code, out, _ := runLab(t, "gc"); code != 0 || !strings.Contains(out, "removed dead") {
		t.Errorf("gc: exit %d, %s", code, out)
	}
	if _, err := os.Stat(string(dead)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("gc left the files: %v", err)
	}
}

func TestALabIsChosen(t *testing.T) {
	root := emptyRoot(t)
	for _, name := range []string{"a", "b"} {
		lock, err := labdir.Dir(filepath.Join(root, name)).Acquire()
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
	}
	if code, _, errOut := runLab(t, "down"); code != 2 || !strings.Contains(errOut, "a, b") {
		t.Errorf("exit %d: %s", code, errOut)
	}
	if code, _, errOut := runLab(t, "--lab", "c", "down"); code != 1 || !strings.Contains(errOut, `"c"`) {
		t.Errorf("exit %d: %s", code, errOut)
	}
}
