// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"errors"
	"io"

	"github.com/ambientlab/ambientlab/topologies"
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
		l = &session.Lasting{Dial: func(ctx context.Context) (*session.Session, error) {
			return session.Over(ctx, func(in io.Reader, out io.Writer) (int, error) {
				argv := []string{topologies.WorkloadBinary, workload.SessionCommand}
				return c.tools.Exec(context.WithoutCancel(ctx), node, argv, lab.Stdio{In: in, Out: out})
			})
		}}
		c.sessions[node] = l
	}
	return l
}

// hangUp ends the sessions; what wants one later opens it again.
func (c *cluster) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.sessions {
		l.Close()
	}
	c.sessions = nil
}
