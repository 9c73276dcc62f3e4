// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// captureBinary is where nodes have the project's command of that name.
const captureBinary = "/usr/local/bin/capture"

// Capture implements lab.Driver. The command `capture` runs on the target's node; the recording ends at Stop, not with ctx.
func (d *Driver) Capture(ctx context.Context, t lab.Target) (lab.Capture, error) {
	s, err := d.standing()
	if err != nil {
		return nil, err
	}
	at, err := s.place(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", t, err)
	}
	c := &capture{}
	run, cut := context.WithCancel(context.WithoutCancel(ctx))
	stdin, end := io.Pipe()
	said, stderr := io.Pipe()
	c.cut, c.end, c.said = cut, end, bufio.NewScanner(said)
	var to io.Writer = &c.packets
	if t.Stream != nil {
		to = t.Stream
	}
	out := &gate{to: to}
	c.running.Go(func() {
		c.exit, c.err = s.host.Exec(run, at.node, append(at.enter, captureCommand(t)...), lab.Stdio{In: stdin, Out: out, Err: stderr})
		out.close()
		stderr.Close()
		stdin.Close()
	})
	stop := context.AfterFunc(ctx, func() { cut(); said.Close() })
	defer stop()
	if c.said.Scan() && c.said.Text() == "ready" {
		return c, nil
	}
	last := c.said.Text()
	said.Close()
	end.Close()
	cut()
	c.running.Wait()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("capture %s: %w", t, context.Cause(ctx))
	}
	return nil, fmt.Errorf("capture %s: it is not ready but says %q, exit code %d: %w", t, last, c.exit, errors.Join(c.err, errNotReady))
}

// errNotReady means that the command on the node did not begin to record.
var errNotReady = errors.New("nothing is recorded")

func captureCommand(t lab.Target) []string {
	argv := []string{captureBinary}
	if t.Interface != "" {
		argv = append(argv, "--interface", t.Interface)
	}
	if t.Filter != "" {
		argv = append(argv, "--filter", t.Filter)
	}
	return argv
}

type capture struct {
	cut     context.CancelFunc
	end     io.Closer      // its end stops the recording
	said    *bufio.Scanner // of the command's standard error; owned by Capture, then by Stop
	running sync.WaitGroup
	packets bytes.Buffer // owned by running until it is done
	exit    int          // the same
	err     error        // the same

	mu      sync.Mutex
	stopped bool
}

// Stop implements lab.Capture.
func (c *capture) Stop(ctx context.Context) (pcapng []byte, drops int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return nil, 0, errors.New("the capture was stopped before")
	}
	c.stopped = true
	defer c.cut()
	cut := context.AfterFunc(ctx, c.cut)
	defer cut()
	c.end.Close()
	last := ""
	for c.said.Scan() {
		last = c.said.Text()
	}
	c.running.Wait()
	var stats struct{ Drops *int }
	switch {
	case ctx.Err() != nil:
		return nil, 0, fmt.Errorf("stop capture: %w", context.Cause(ctx))
	case c.err != nil:
		return nil, 0, fmt.Errorf("stop capture: %w", c.err)
	case c.exit != 0:
		return nil, 0, fmt.Errorf("stop capture: exit code %d: %s", c.exit, last)
	}
	if err := json.Unmarshal([]byte(last), &stats); err != nil || stats.Drops == nil {
		return nil, 0, fmt.Errorf("stop capture: no account of drops: %q", last)
	}
	return c.packets.Bytes(), *stats.Drops, nil
}
