// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"

	"github.com/ambientlab/ambientlab/topologies/driver/netns"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/hold"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

func attachNetns(ctx context.Context, dir labdir.Dir) (*lab.Lab, error) {
	return netns.Attach(ctx, dir)
}

func downNetns(ctx context.Context, dir labdir.Dir) error { return netns.Reach(dir).Down(ctx) }

// netnsCandidate is a lab of namespaces that is to come up.
func (a *app) netnsCandidate(o upOptions) (*candidate, error) {
	dir, err := labdir.New(os.Getenv, o.name)
	if err != nil {
		return nil, err
	}
	d := netns.New(netns.Options{Detach: o.detach, Progress: a.progress})
	return &candidate{
		Driver: d, up: lab.UpOptions{Dir: string(dir)}, ended: d.Ended,
		left: func() bool {
			_, err := os.Stat(string(dir))
			return !errors.Is(err, os.ErrNotExist)
		},
	}, nil
}

// hold is the inside half of a lab.
func (a *app) hold(ctx context.Context, dir, bin string, detach bool) error {
	return hold.Run(ctx, hold.Config{Dir: labdir.Dir(dir), Bin: bin, Detached: detach})
}
