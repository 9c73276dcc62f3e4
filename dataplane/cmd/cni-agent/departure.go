// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/source/kube/nodeapi"
)

const (
	askAgain         = 5 * time.Second
	departureTimeout = 15 * time.Second
)

// departure decides whether what the agent has installed on its node stays there when it ends. On an upgrade, or when the
// node stops, it stays, so that new pods of the mesh wait for the next agent. It goes with the agent's DaemonSet: if that, or
// the account that could see it, was there while the agent ran and is not any more.
type departure struct {
	wanted func(context.Context) (bool, error)
	log    *slog.Logger
	seen   atomic.Bool // the DaemonSet was there
}

// Run looks for the DaemonSet until there is an answer.
func (d *departure) Run(ctx context.Context) error {
	for {
		wanted, err := d.wanted(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case wanted:
			d.seen.Store(true)
			return nil
		case err == nil:
			d.log.Warn("the agent's DaemonSet is not there, so the plugin will stay on the node when the agent ends: name it by --daemonset and --pod-namespace")
			return nil
		case errors.Is(err, nodeapi.ErrRefused):
			d.log.Warn("the agent may not see its DaemonSet, so the plugin will stay on the node when the agent ends: let its account get it", "error", err)
			return nil
		}
		t := time.NewTimer(askAgain)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// final reports whether nobody comes after this agent. Its ctx is the one that has ended.
func (d *departure) final(ctx context.Context) bool {
	if !d.seen.Load() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), departureTimeout)
	defer cancel()
	wanted, err := d.wanted(ctx)
	switch {
	case errors.Is(err, nodeapi.ErrRefused):
		d.log.Info("the agent's account is gone", "error", err)
		return true
	case err != nil:
		d.log.Warn("the API server does not tell whether the agent comes back: the plugin stays", "error", err)
		return false
	case wanted:
		d.log.Info("the agent comes back: the plugin stays, and pods of the mesh that start meanwhile wait")
		return false
	default:
		d.log.Info("the agent's DaemonSet is gone")
		return true
	}
}
