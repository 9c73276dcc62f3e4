// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
)

// record is the directory of one cluster: its kubeconfig, what its lab is, and the lock of the process that owns it. A cluster
// without a living owner is nobody's, unless it was detached.
type record string

// about is what a later process must know of a cluster.
type about struct {
	Shape    shape    `json:"shape"`
	Nodenet  bool     `json:"nodenet,omitempty"`  // the node image brings that
	Mesh     string   `json:"mesh,omitempty"`     // the mesh image that was loaded last
	Topology string   `json:"topology,omitempty"` // whose lab it has, or whose mesh the last one left
	Links    bool     `json:"links,omitempty"`    // its nodes' links are not Ethernet's
	Kept     bool     `json:"kept,omitempty"`     // without a lab, for the next run
	Detached bool     `json:"detached,omitempty"`
	Nodes    []string `json:"nodes,omitempty"` // of the lab: containers, in the order of the topology's nodes; none: there is no lab
}

// root is where the records are.
func root() (string, error) {
	dir, err := labdir.Root(os.Getenv)
	return filepath.Join(dir, "kind-clusters"), err
}

func recordOf(name string) (record, error) {
	dir, err := root()
	return record(filepath.Join(dir, name)), err
}

func (r record) name() string       { return filepath.Base(string(r)) }
func (r record) kubeconfig() string { return filepath.Join(string(r), "kubeconfig") }
func (r record) lab() string        { return filepath.Join(string(r), "lab.json") }
func (r record) remove() error      { return os.RemoveAll(string(r)) }

// mount is the directory that the cluster's nodes have too: see shapes.NodeMount.
func (r record) mount() string { return filepath.Join(string(r), "nodes") }

// own makes the directory and holds its lock until the file is closed.
func (r record) own() (*os.File, error) { return labdir.Dir(r).Acquire() }

func (r record) write(a about) error {
	text, err := json.MarshalIndent(a, "", "  ")
	if err == nil {
		err = os.WriteFile(r.lab(), append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("record lab %s: %w", r.name(), err)
	}
	return nil
}

// read is what was recorded. What the lab is, the cluster itself knows: see kube.Attach.
func (r record) read() (a about, err error) {
	text, err := os.ReadFile(r.lab())
	if err == nil {
		err = json.Unmarshal(text, &a)
	}
	if err != nil {
		return a, fmt.Errorf("read the record of lab %s: %w", r.name(), err)
	}
	return a, nil
}

// wanted reports whether the cluster was left standing on purpose.
func (r record) wanted() bool {
	a, err := r.read()
	return err == nil && (a.Detached || a.Kept)
}

// used reports whether an owner has come as far as making a cluster.
func (r record) used() bool {
	_, err := os.Stat(r.kubeconfig())
	return err == nil
}

// records lists all that there are.
func records() ([]record, error) {
	dir, err := root()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var all []record
	for _, e := range entries {
		if e.IsDir() {
			all = append(all, record(filepath.Join(dir, e.Name())))
		}
	}
	return all, err
}

// Sweep removes the clusters whose owner was killed, and returns their names. It touches no cluster that this package did not
// make, none whose owner lives, and none that was detached or kept.
func Sweep(ctx context.Context, bin string) ([]string, error) {
	all, err := records()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	t, err := findTools(ctx, bin)
	if err != nil {
		return nil, err
	}
	var swept []string
	var errs []error
	for _, r := range all {
		if r.wanted() {
			continue
		}
		lock, err := r.own()
		if err != nil {
			continue // its owner lives
		}
		c := &cluster{tools: t, name: r.name(), dir: r}
		if err := c.delete(ctx); err != nil {
			errs = append(errs, err)
		} else {
			swept = append(swept, r.name())
		}
		lock.Close()
	}
	return swept, errors.Join(errs...)
}
