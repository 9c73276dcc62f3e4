// SPDX-License-Identifier: Apache-2.0

package world

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// accessLog is what has been read of one ztunnel's log. Logs only grow, so each line is parsed once.
type accessLog struct {
	mu      sync.Mutex
	read    int64             // guarded by mu; bytes, up to the end of the last whole line
	entries []telemetry.Entry // guarded by mu
}

// Entries are the access-log entries of a node's ztunnel from since on: all that were written by now.
func (w *World) Entries(ctx context.Context, node string, since time.Time) ([]telemetry.Entry, error) {
	return w.entries(ctx, node, since, w.Daemon(node, lab.DaemonZtunnel).Logs)
}

// entriesSoFar are those that have come to this process, for who waits for one.
func (w *World) entriesSoFar(ctx context.Context, node string, since time.Time) ([]telemetry.Entry, error) {
	return w.entries(ctx, node, since, w.Daemon(node, lab.DaemonZtunnel).LogsSoFar)
}

// readEntries is Entries or entriesSoFar.
type readEntries func(ctx context.Context, node string, since time.Time) ([]telemetry.Entry, error)

type openLog func(context.Context, time.Time) (io.ReadCloser, error)

func (w *World) entries(ctx context.Context, node string, since time.Time, open openLog) ([]telemetry.Entry, error) {
	l := w.logs[node]
	if l == nil {
		return nil, fmt.Errorf("read ztunnel's log: there is no node %s", node)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := open(ctx, time.Time{})
	if err != nil {
		return nil, fmt.Errorf("read ztunnel's log on %s: %w", node, err)
	}
	defer r.Close()
	if err := l.more(r); err != nil {
		return nil, fmt.Errorf("read ztunnel's log on %s: %w", node, err)
	}
	const disorder = time.Second // lines of connections that end together may be written in any order
	from := sort.Search(len(l.entries), func(i int) bool { return !l.entries[i].Record.Time.Before(since.Add(-disorder)) })
	return slices.DeleteFunc(slices.Clone(l.entries[from:]), func(e telemetry.Entry) bool { return e.Record.Time.Before(since) }), nil
}

func (l *accessLog) more(r io.Reader) error {
	if err := skip(r, l.read); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // a line that is not whole yet is read again
		}
		if err != nil {
			return err
		}
		l.read += int64(len(line))
		if line[0] != '{' {
			continue // a panic's trace, or a line cut by a crash: not a record
		}
		e, err := telemetry.ParseRecord(line)
		switch {
		case errors.Is(err, telemetry.ErrNotAccess):
		case err != nil:
			return err
		default:
			l.entries = append(l.entries, e)
		}
	}
}

func skip(r io.Reader, n int64) error {
	if s, ok := r.(io.Seeker); ok {
		_, err := s.Seek(n, io.SeekStart)
		return err
	}
	_, err := io.CopyN(io.Discard, r, n)
	return err
}

// WaitEntry waits, within the budget for evidence, for an entry that want accepts.
func (w *World) WaitEntry(ctx context.Context, node string, since time.Time, want func(telemetry.Entry) bool) (telemetry.Entry, error) {
	var found telemetry.Entry
	err := Wait(ctx, Budget.Evidence, func(ctx context.Context) (bool, error) {
		entries, err := w.entriesSoFar(ctx, node, since)
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
