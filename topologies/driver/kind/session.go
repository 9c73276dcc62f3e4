// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"errors"
	"io"
	"os/exec"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/kube"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
	"github.com/ambientlab/ambientlab/topologies/workload/session"
)

// Exec implements kube.Host, as tools does, but over a session with each node that is kept open: `docker exec` costs both
// processors of a small machine more than most commands do.
func (c *cluster) Exec(ctx context.Context, node string, argv []string, stdio lab.Stdio) (int, error) {
	exit, err := c.session(node).Run(ctx, argv, stdio.In, stdio.Out, stdio.Err)
	if errors.Is(err, session.ErrEnded) && ctx.Err() == nil { // the node has no such program yet
		return c.tools.Exec(ctx, node, argv, stdio)
	}
	return exit, err
}

func (c *cluster) session(node string) *session.Lasting {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions == nil {
		c.sessions = map[string]*session.Lasting{}
	}
	l := c.sessions[node]
	if l == nil {
		l = session.NewLasting(func(ctx context.Context) (*session.Session, error) {
			return session.Over(ctx, func(in io.Reader, out io.Writer) (int, error) { return c.farEnd(node, in, out) })
		})
		c.sessions[node] = l
	}
	return l
}

// farEnd runs a session's far end on a node until in ends, or the node.
func (t tools) farEnd(node string, in io.Reader, out io.Writer) (int, error) {
	cmd := exec.Command(t.docker, "exec", "-i", node, topologies.WorkloadBinary, workload.SessionCommand) //nolint:gosec,noctx // docker; it ends with in
	cmd.Stdout = out
	to, err := cmd.StdinPipe() // not cmd.Stdin: the end of docker would wait for the end of its input
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		_, _ = io.Copy(to, in)
		to.Close()
	}()
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// connected are this process's connections to the cluster.
func (c *cluster) connected() *kube.Connections {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.connections == nil {
		c.connections = kube.NewConnections()
	}
	return c.connections
}

// hangUp ends what this process has open to the cluster.
func (c *cluster) hangUp() {
	c.mu.Lock()
	sessions, connections := c.sessions, c.connections
	c.sessions, c.connections = nil, nil
	c.mu.Unlock()
	if connections != nil { // first: sessions with pods may go through nodes
		connections.Close()
	}
	for _, l := range sessions {
		l.Close()
	}
}
