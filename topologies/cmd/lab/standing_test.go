// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
)

// cluster writes the record of a kind cluster, and holds its lock until the test ends if it has an owner.
func cluster(t *testing.T, root, name, about string, owned bool) {
	t.Helper()
	dir := labdir.Dir(filepath.Join(root, "kind-clusters", "ambientlab-"+name))
	lock, err := dir.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	if owned {
		t.Cleanup(func() { lock.Close() })
	} else {
		lock.Close()
	}
	if err := os.WriteFile(filepath.Join(string(dir), "lab.json"), []byte(about), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Labs of all drivers are listed together; clusters without a lab are none, and say why.
func TestListKnowsClusters(t *testing.T) {
	root := emptyRoot(t)
	lock, err := labdir.Dir(filepath.Join(root, "spaces")).Acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	cluster(t, root, "left", `{"detached":true,"nodes":["n"]}`, false)
	cluster(t, root, "flat", `{"shape":{"cni":{"name":"flannel","manifest":"1"}},"detached":true,"nodes":["n"]}`, false)
	cluster(t, root, "suites", `{"nodes":["n"]}`, true)
	cluster(t, root, "spare", `{}`, true)
	cluster(t, root, "kept", `{"kept":true}`, false)
	cluster(t, root, "dead", `{"nodes":["n"]}`, false)
	_, out, errOut := runLab(t, "list")
	for name, state := range map[string]string{
		"spaces": "netns stands", "left": "kind stands", "flat": "kind stands, with the CNI flannel", "suites": "kind stands", "spare": "kind in use", "kept": "kind an empty cluster", "dead": "kind gone; `lab gc`",
	} {
		found := false
		for line := range strings.Lines(out) {
			words := strings.Join(strings.Fields(line), " ")
			found = found || strings.HasPrefix(words, name+" "+state)
		}
		if !found {
			t.Errorf("no %s, %s in\n%s%s", name, state, out, errOut)
		}
	}
	if _, out, _ := runLab(t, "__complete", "down", ""); !strings.HasPrefix(out, "flat\nleft\nspaces\nsuites\n") {
		t.Errorf("completed with\n%s", out)
	}
	expectExit(t, "ps", 2, "choose with --lab: flat, left, spaces, suites")
	expectExit(t, "--lab spare ps", 1, `no lab "spare" stands`)
	expectExit(t, "down suites", 1, "Ctrl-C")
}

// Of two labs of one name the driver's tells which is meant.
func TestANameMayNeedItsDriver(t *testing.T) {
	root := emptyRoot(t)
	lock, err := labdir.Dir(filepath.Join(root, "one")).Acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	cluster(t, root, "one", `{"nodes":["n"]}`, true)
	expectExit(t, "down one", 2, "kind/one", "netns/one")
	expectExit(t, "down kind/one", 1, "Ctrl-C")
}
