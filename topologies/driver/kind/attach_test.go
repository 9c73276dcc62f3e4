// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// recorded makes a record and releases its lock.
func recorded(t *testing.T, name string, a about) record {
	t.Helper()
	r, err := recordOf(fullName(name))
	if err != nil {
		t.Fatal(err)
	}
	lock, err := r.own()
	if err == nil {
		err = errors.Join(r.write(a), os.WriteFile(r.kubeconfig(), nil, 0o600), lock.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// idle are tools that do nothing, well, and note that in a file.
func idle(t *testing.T) (t2 tools, calls string) {
	t.Helper()
	dir := t.TempDir()
	program, calls := filepath.Join(dir, "program"), filepath.Join(dir, "calls")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho \"$1 $2\" >> "+calls+"\n"), 0o755); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	return tools{kind: program, docker: program}, calls
}

func TestStates(t *testing.T) {
	t.Setenv("AMBIENTLAB_DIR", t.TempDir())
	recorded(t, "detached", about{Detached: true, Nodes: []string{"n"}})
	recorded(t, "dead", about{Nodes: []string{"n"}})
	recorded(t, "kept", about{Kept: true})
	for name, a := range map[string]about{"owned": {Nodes: []string{"n"}}, "spare": {}} {
		lock, err := recorded(t, name, a).own()
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
	}
	labs, err := Labs()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]State{}
	for _, l := range labs {
		got[l.Name] = l.State
	}
	if diff := cmp.Diff(map[string]State{"detached": Stands, "owned": Stands, "dead": Gone, "kept": Kept, "spare": Owned}, got); diff != "" {
		t.Error(diff)
	}
}

// A name whose lab stands is refused, and nothing happens to that lab; what a killed owner left is removed first.
func TestClaim(t *testing.T) {
	t.Setenv("AMBIENTLAB_DIR", t.TempDir())
	tools, calls := idle(t)
	wanted := recorded(t, "detached", about{Detached: true, Nodes: []string{"n"}})
	lock, err := recorded(t, "owned", about{Nodes: []string{"n"}}).own()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for _, name := range []string{"detached", "ambientlab-detached", "owned"} {
		if _, _, err := claim(t.Context(), tools, name, "two-pods"); !errors.Is(err, lab.ErrOccupied) {
			t.Errorf("%s: %v, want ErrOccupied", name, err)
		}
	}
	if _, err := os.Stat(wanted.lab()); err != nil {
		t.Errorf("the lab's record: %v", err)
	}
	if _, err := os.Stat(calls); err == nil {
		t.Error("something was run for a name that is taken")
	}
	recorded(t, "dead", about{Nodes: []string{"n"}})
	dir, again, err := claim(t.Context(), tools, "dead", "two-pods")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	said, err := os.ReadFile(calls)
	if err != nil || dir.used() {
		t.Errorf("%q, %v; used: %v", said, err, dir.used())
	}
	if _, second, err := claim(t.Context(), tools, "dead", "two-pods"); err == nil {
		second.Close()
		t.Error("one name was claimed twice")
	}
}
