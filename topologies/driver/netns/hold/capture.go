// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// capture records in a target's namespace until the client says stop. Packets go to the client's own pipe.
func (s *site) capture(ctx context.Context, c *client, t *lab.Target) (drops int, err error) {
	at, err := s.place(t)
	if err != nil {
		return 0, err
	}
	if len(c.files) != 1 {
		return 0, fmt.Errorf("capture %s: got %d descriptors", t, len(c.files))
	}
	drops, err = at.record(ctx, c, t)
	if err != nil {
		return 0, fmt.Errorf("capture %s: %w", t, err)
	}
	return drops, nil
}

func captureCommand(t *lab.Target) []string {
	argv := []string{binPath + "/capture"}
	if t.Interface != "" {
		argv = append(argv, "--interface", t.Interface)
	}
	if t.Filter != "" {
		argv = append(argv, "--filter", t.Filter)
	}
	return argv
}

func (at place) record(ctx context.Context, c *client, t *lab.Target) (int, error) {
	stdinR, stdinW, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer stdinW.Close() // its end stops the recording, whatever happens
	stderrR, stderrW, err := os.Pipe()
	if err != nil {
		stdinR.Close()
		return 0, err
	}
	defer stderrR.Close()
	start := pause.Start{Argv: captureCommand(t), Env: []string{"PATH=" + podPath}, Dir: "/"}
	proc, err := at.init.Start(ctx, start, stdinR, c.files[0], stderrW)
	stdinR.Close()
	stderrW.Close()
	c.files[0].Close() // or the client would wait for us too
	c.files = nil
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { stdinW.Close() })
	defer stop()
	said := bufio.NewScanner(stderrR)
	if !said.Scan() || said.Text() != "ready" {
		stdinW.Close() // or it might go on, with nobody to stop it
		return 0, fmt.Errorf("it is not ready but says %q, exit code %d", said.Text(), proc.ExitCode())
	}
	if err := c.conn.Send(order.Reply{Started: true}); err != nil {
		return 0, err
	}
	select {
	case <-c.notes:
	case <-proc.Done():
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return finish(ctx, proc, said)
}

// finish ends the recording and reads its account.
func finish(ctx context.Context, proc *pause.Process, said *bufio.Scanner) (int, error) {
	if err := proc.Signal(ctx, syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, err
	}
	last := ""
	for said.Scan() {
		last = said.Text()
	}
	var stats struct{ Drops *int }
	if code := proc.ExitCode(); code != 0 {
		return 0, fmt.Errorf("exit code %d: %s", code, last)
	}
	if err := json.Unmarshal([]byte(last), &stats); err != nil || stats.Drops == nil {
		return 0, fmt.Errorf("no account of drops: %q", last)
	}
	return *stats.Drops, nil
}
