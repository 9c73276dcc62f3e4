// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/channel"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
)

// exec runs a command in a pod with the pod's rights and the client's streams. It is killed when the client is gone.
// A terminal is a pty of the pod's own devpts, opened by its init; its master goes out with the first reply.
func (s *site) exec(ctx context.Context, c *client, r *order.Exec) (int, error) {
	p, err := s.pod(r.Pod)
	if err != nil {
		return 0, err
	}
	init := p.handle()
	if init == nil {
		return 0, fmt.Errorf("pod %s has not started yet", r.Pod)
	}
	streams := 3
	if r.TTY != nil {
		streams = 0
	}
	if len(c.files) != streams || len(r.Argv) == 0 {
		return 0, fmt.Errorf("exec: got %d streams and %d arguments", len(c.files), len(r.Argv))
	}
	container := &p.object().Spec.Containers[0]
	bounds, err := containerBounds(container, p.role)
	if err != nil {
		return 0, err
	}
	start := pause.Start{Argv: r.Argv, Env: environment(p, container), Dir: "/", Bounds: bounds}
	if r.TTY != nil {
		start.Terminal = &pause.Terminal{Rows: r.TTY.Rows, Cols: r.TTY.Cols}
	}
	proc, err := init.Start(ctx, start, c.files...)
	if err != nil {
		return 0, fmt.Errorf("exec %s in pod %s: %w", r.Argv[0], r.Pod, err)
	}
	for _, f := range c.files {
		f.Close() // or a reader at the other end would wait for us too
	}
	c.files = nil
	var terminal []*os.File
	if proc.Terminal != nil {
		terminal = []*os.File{proc.Terminal}
	}
	_ = c.conn.Send(order.Reply{Started: true}, terminal...)
	channel.CloseAll(terminal) // the client's copy is the last one: when it is closed, the session hangs up
	return s.accompany(ctx, c, r, proc)
}

// errnoOf is why the kernel did not start a command, 0 if that is not what went wrong.
func errnoOf(err error) int {
	if refused := (*pause.RefusedError)(nil); errors.As(err, &refused) {
		return int(refused.Errno)
	}
	return 0
}

// accompany passes signals on until the process ends, and ends it if its client is gone.
func (s *site) accompany(ctx context.Context, c *client, r *order.Exec, proc *pause.Process) (int, error) {
	for {
		select {
		case <-proc.Done():
			return proc.ExitCode(), nil
		case n := <-c.notes:
			if err := proc.Signal(ctx, syscall.Signal(n.Signal)); err != nil && !errors.Is(err, os.ErrProcessDone) {
				s.log.Warn("signal not passed on", "pod", r.Pod, "err", err)
			}
		case <-ctx.Done():
			_ = proc.SignalGroup(context.WithoutCancel(ctx), syscall.SIGKILL)
			return proc.ExitCode(), ctx.Err()
		}
	}
}
