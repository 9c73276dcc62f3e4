// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/ambientlab/ambientlab/topologies/driver/kube"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/programs"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// State is what there is of a cluster.
type State string

// States of clusters.
const (
	Stands State = "stands" // with a lab in it
	Owned  State = "owned"  // it has no lab now, and a process that will use it
	Kept   State = "kept"   // it has no lab, and waits for a process to come: see Pool.Keep
	Gone   State = "gone"   // its process is, but perhaps not the cluster, nor half of one: see Sweep
)

// Lab is a cluster of ours on this machine.
type Lab struct {
	Name       string // as Driver.Name has it
	Dir        string // of its record
	Kubeconfig string // a file
	State      State
	CNI        string // that was asked for; "" is what the node image brings
}

// Labs lists the clusters that this user's records know of, sorted by name. It asks nobody whether they are really there.
func Labs() ([]Lab, error) {
	dir, err := root()
	if err != nil {
		return nil, err
	}
	dirs, err := labdir.List(dir)
	if err != nil {
		return nil, err
	}
	var labs []Lab
	for _, d := range dirs {
		r := record(d.Dir)
		a, _ := r.read() // without a record nothing was asked for
		labs = append(labs, Lab{
			Name: strings.TrimPrefix(r.name(), prefix), Dir: string(r), Kubeconfig: r.kubeconfig(), State: r.state(d.Stands), CNI: a.Shape.CNI.Name,
		})
	}
	return labs, nil
}

// state is what a record and its lock say together.
func (r record) state(held bool) State {
	a, err := r.read()
	switch {
	case err == nil && len(a.Nodes) > 0 && (held || a.Detached):
		return Stands
	case held:
		return Owned
	case err == nil && a.Kept:
		return Kept
	}
	return Gone
}

// Attach is a driver of the lab in the cluster of that name, whoever brought it up. Its Down removes the cluster, unless the
// process that brought it up is still there. Its method Leave is for who has seen enough.
func Attach(ctx context.Context, name string) (*lab.Lab, error) {
	c, err := open(name)
	if err != nil {
		return nil, err
	}
	l, err := kube.Attach(ctx, kube.Options{Kubeconfig: c.dir.kubeconfig(), Direct: c.apiServer(ctx), Host: c, Outside: c.outsideName, NetworkPolicy: c.enforces()})
	if err != nil {
		return nil, err
	}
	d := New(Options{})
	d.Driver, d.cluster = l.Driver.(*kube.Driver), &owned{cluster: c}
	return &lab.Lab{Driver: d, Spec: l.Spec}, nil
}

// Remove removes a cluster by name, with what is in it, unless a process that runs uses it.
func Remove(ctx context.Context, name string) error {
	dir, err := found(name)
	if err != nil {
		return err
	}
	lock, err := dir.own()
	if err != nil {
		return fmt.Errorf("take down lab %s: %w", strings.TrimPrefix(dir.name(), prefix), ownedBy(err))
	}
	c, err := open(name)
	if err != nil {
		lock.Close()
		return err
	}
	return (&owned{cluster: c, lock: lock}).end(ctx)
}

// found is the record of a cluster.
func found(name string) (record, error) {
	dir, err := recordOf(fullName(name))
	if err == nil {
		_, err = os.Stat(string(dir))
	}
	if err != nil {
		return "", fmt.Errorf("find lab %s: %w", name, err)
	}
	return dir, nil
}

// open finds a cluster by its record.
func open(name string) (*cluster, error) {
	dir, err := found(name)
	if err != nil {
		return nil, err
	}
	bin, err := programs.Dir("")
	if err != nil {
		return nil, err
	}
	t, err := locateTools(bin)
	if err != nil {
		return nil, err
	}
	c := &cluster{tools: t, name: dir.name(), dir: dir}
	if a, err := dir.read(); err == nil { // else it is half of one, which can be removed
		c.shape, c.nodenet, c.mesh = a.Shape, a.Nodenet, a.Mesh
	}
	return c, nil
}

// ownedBy is err, with the cure if it says that a process owns the cluster.
func ownedBy(err error) error {
	if errors.Is(err, labdir.ErrTaken) {
		return errors.New("the process that brought it up is still there: end that (Ctrl-C), and the lab goes with it")
	}
	return err
}
