// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// task is a process that can be started again: a pod's main process, or a daemon. It is never restarted by itself.
type task struct {
	name  string
	init  *pause.Handle
	start pause.Start
	log   string        // file that takes its output
	grace time.Duration // between SIGTERM and SIGKILL

	op sync.Mutex // held over a whole start or stop

	mu      sync.Mutex
	proc    *pause.Process // guarded by mu; of the last run
	doomed  *pause.Process // guarded by mu; was sent SIGKILL, and may not have noticed yet
	started time.Time      // guarded by mu
	logFrom int64          // guarded by mu; where the last run's output begins
}

// Start starts the task and returns its process, or nil if it runs already; env overrides its environment, for this run
// only. One that was sent SIGKILL does not count as running: its end is waited for.
func (t *task) Start(ctx context.Context, env ...string) (*pause.Process, error) {
	t.op.Lock()
	defer t.op.Unlock()
	if p := t.running(); p != nil {
		if !t.isDoomed(p) {
			return nil, nil
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			return nil, fmt.Errorf("start %s: its last run has not ended: %w", t.name, ctx.Err())
		}
	}
	p, err := t.run(ctx, env)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", t.name, err)
	}
	return p, nil
}

// run is called with op held.
func (t *task) run(ctx context.Context, env []string) (*pause.Process, error) {
	out, err := os.OpenFile(t.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	end, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	what := t.start
	what.Env = override(slices.Clone(what.Env), env)
	p, err := t.init.Start(ctx, what, null, out, out)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.proc, t.started, t.logFrom = p, started, end
	return p, nil
}

func (t *task) isDoomed(p *pause.Process) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.doomed == p
}

// last is the process of the last run, nil before the first.
func (t *task) last() *pause.Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.proc
}

// running is the process, nil if it does not run.
func (t *task) running() *pause.Process {
	p := t.last()
	if p == nil {
		return nil
	}
	select {
	case <-p.Done():
		return nil
	default:
		return p
	}
}

// ended says how the last run ended, with the end of its output; "" if it has not, or there was none.
func (t *task) ended() string {
	p := t.last()
	if p == nil || t.running() != nil {
		return ""
	}
	said := fmt.Sprintf("ended with exit code %d", p.ExitCode())
	if tail := t.tail(); tail != "" {
		said += ": " + tail
	}
	return said
}

// tail is the last few lines that the last run printed.
func (t *task) tail() string {
	const most = 1024
	t.mu.Lock()
	from := t.logFrom
	t.mu.Unlock()
	f, err := os.Open(t.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		from = max(from, info.Size()-most)
	}
	data, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// Signal sends a signal to the process.
func (t *task) Signal(ctx context.Context, sig syscall.Signal) error {
	p := t.running()
	if p == nil {
		return fmt.Errorf("signal %s: %w", t.name, os.ErrProcessDone)
	}
	if sig == syscall.SIGKILL { // noted first: whether or not we hear that it was sent, it may be
		t.mu.Lock()
		t.doomed = p
		t.mu.Unlock()
	}
	if err := p.Signal(ctx, sig); err != nil {
		return fmt.Errorf("signal %s: %w", t.name, err)
	}
	return nil
}

// Stop ends the process with SIGTERM, after its grace period with SIGKILL, and waits.
func (t *task) Stop(ctx context.Context) error {
	t.op.Lock()
	defer t.op.Unlock()
	p := t.running()
	if p == nil {
		return nil
	}
	if err := p.Signal(ctx, syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", t.name, err)
	}
	grace := time.NewTimer(t.grace)
	defer grace.Stop()
	select {
	case <-p.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", t.name, ctx.Err())
	case <-grace.C:
	}
	if err := p.SignalGroup(ctx, syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", t.name, err)
	}
	<-p.Done()
	return nil
}

// Status is a look at the process; its descriptor tells whoever gets it the process id (the caller closes it).
func (t *task) Status() (lab.Status, *os.File) {
	p := t.last()
	if p == nil {
		return lab.Status{}, nil
	}
	t.mu.Lock()
	status := lab.Status{Started: t.started}
	t.mu.Unlock()
	if t.running() == nil {
		status.ExitCode = p.ExitCode()
		return status, nil
	}
	status.Running = true
	return status, p.Descriptor()
}
