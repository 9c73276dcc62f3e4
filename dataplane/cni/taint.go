// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// NodeWriter takes all taints with a key from a node, and reports whether there were any.
type NodeWriter interface {
	Untaint(ctx context.Context, node, key string) (removed bool, err error)
}

// Taint keeps pods from a node until its agent is ready: whoever adds the node gives it the taint, and the agent takes it away.
type Taint struct {
	Node, Key string
	Objects   source.Source
	Nodes     NodeWriter
	Ready     *admin.Readiness
	Log       *slog.Logger

	retry time.Duration // 0 means 1 s
}

// Run takes the taint away whenever it is there and the agent is ready, until ctx ends.
func (t *Taint) Run(ctx context.Context) error {
	if t.retry == 0 {
		t.retry = time.Second
	}
	told := false
	for ctx.Err() == nil {
		changed := t.Objects.Changed()
		var again <-chan time.Time // for readiness tells nobody that it is there
		if t.tainted() {
			again = time.After(t.retry)
			if len(t.Ready.Pending()) == 0 {
				removed, err := t.Nodes.Untaint(ctx, t.Node, t.Key)
				switch {
				case err != nil && ctx.Err() == nil && !told:
					t.Log.Warn("taint cannot be removed, trying again: pods wait for that", "node", t.Node, "taint", t.Key, "error", err)
				case removed:
					t.Log.Info("taint removed: the agent is ready", "node", t.Node, "taint", t.Key)
				}
				told = err != nil
			}
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again:
		}
	}
	return nil
}

func (t *Taint) tainted() bool {
	n := t.Objects.Load().Nodes[t.Node]
	return n != nil && slices.ContainsFunc(n.Spec.Taints, func(x corev1.Taint) bool { return x.Key == t.Key })
}
