// SPDX-License-Identifier: Apache-2.0

package world

import (
	"context"
	"errors"

	"github.com/onsi/ginkgo/v2"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// OwnLab decorates a scenario that does not stand on the suite's lab, but brings one up or borrows one. It runs after those
// that do: where a process has room for one lab, the suite's is taken down once. LongOwnLab is for one that takes half a minute on
// some lab: it comes before the others, so that no process is alone with it at the end.
const (
	OwnLab     = ginkgo.SpecPriority(-2)
	LongOwnLab = ginkgo.SpecPriority(-1)
)

// errNotDecorated fails a scenario that would take the suite's lab from those that follow.
var errNotDecorated = errors.New("a scenario with a lab of its own needs the decorator world.OwnLab")

func owning() error {
	switch ginkgo.SpecPriority(ginkgo.CurrentSpecReport().SpecPriority) {
	case OwnLab, LongOwnLab:
		return nil
	default:
		return errNotDecorated
	}
}

// suiteTopology is that of the suite's lab.
var suiteTopology string

// Init brings the suite's lab up; topology is a name of the catalogue.
func Init(ctx context.Context, topology string) error {
	suiteTopology = topology
	w, err := start(ctx, topology, lab.UpOptions{}, func(*topologies.Spec) {})
	if err != nil {
		return err
	}
	shared = *w // which Close takes down, whatever comes now
	return shared.reachable(ctx)
}

// Ready brings the suite's lab up again if it was taken down and the current scenario stands on it: call it before each.
func Ready(ctx context.Context) error {
	if shared.Lab != nil || owning() == nil {
		return nil
	}
	return Init(ctx, suiteTopology)
}

// room takes down labs that nobody uses now: those that wait for a borrower, if there are none the suite's. It reports whether
// there was one.
func room(ctx context.Context) (bool, error) {
	if len(spare) > 0 {
		return true, closeSpare(ctx)
	}
	stands := shared.Lab != nil
	return stands, closeShared(ctx)
}

// closeShared takes the suite's lab down. What it could do is remembered, since scenarios ask that before they bring one up.
func closeShared(ctx context.Context) error {
	if shared.Lab == nil {
		return nil
	}
	err := shared.down(ctx)
	shared.Lab = nil
	return err
}

// Close takes the suite's lab down, and those that nobody borrows any more.
func Close(ctx context.Context) error { return errors.Join(closeSpare(ctx), closeShared(ctx)) }

// closeSpare takes down the labs that wait for a borrower.
func closeSpare(ctx context.Context) error {
	var errs []error
	for topology, w := range spare {
		delete(spare, topology)
		errs = append(errs, w.down(ctx))
	}
	return errors.Join(errs...)
}
