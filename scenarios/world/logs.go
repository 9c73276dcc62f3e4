// SPDX-License-Identifier: Apache-2.0

package world

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Entries are the access-log entries of a node's ztunnel from since on.
func (w *World) Entries(ctx context.Context, node string, since time.Time) ([]telemetry.Entry, error) {
	r, err := w.Daemon(node, lab.DaemonZtunnel).Logs(ctx, since)
	if err != nil {
		return nil, fmt.Errorf("read ztunnel's log on %s: %w", node, err)
	}
	defer r.Close()
	var out []telemetry.Entry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 || lines.Bytes()[0] != '{' {
			continue // a panic's trace, or a line cut by a crash: not a record
		}
		e, err := telemetry.ParseRecord(lines.Bytes())
		switch {
		case errors.Is(err, telemetry.ErrNotAccess):
		case err != nil:
			return nil, fmt.Errorf("read ztunnel's log on %s: %w", node, err)
		case e.Record.Time.Before(since):
		default:
			out = append(out, e)
		}
	}
	return out, lines.Err()
}

// WaitEntry waits, within the budget for evidence, for an entry that want accepts.
func (w *World) WaitEntry(ctx context.Context, node string, since time.Time, want func(telemetry.Entry) bool) (telemetry.Entry, error) {
	var found telemetry.Entry
	err := Wait(ctx, Budget.Evidence, func(ctx context.Context) (bool, error) {
		entries, err := w.Entries(ctx, node, since)
		for _, e := range entries {
			if want(e) {
				found = e
				return true, nil
			}
		}
		return false, err
	})
	if err != nil {
		return found, fmt.Errorf("wait for an access-log entry on %s: %w", node, err)
	}
	return found, nil
}

// ErrBudget is what Wait returns when its budget is spent.
var ErrBudget = errors.New("the condition did not come true within its budget")

// Wait polls until done says so. An error from done does not end the wait; the last one is reported with ErrBudget.
func Wait(ctx context.Context, budget time.Duration, done func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	tick := time.NewTicker(Budget.Poll)
	defer tick.Stop()
	for {
		ok, err := done(ctx)
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%w (%s)", ErrBudget, budget), err)
		case <-tick.C:
		}
	}
}
