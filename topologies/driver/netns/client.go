// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/channel"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
)

// ErrNoLab means that no holder listens.
var ErrNoLab = errors.New("no such lab stands")

// exchange is a request under way. It ends with the last reply, an error, or close.
type exchange struct {
	conn *channel.Conn
	stop func() bool
}

// ask sends a request to dir's holder. When ctx ends, the request is withdrawn.
func ask(ctx context.Context, dir labdir.Dir, r order.Request, files ...*os.File) (*exchange, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", dir.Socket())
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			err = fmt.Errorf("%w: %s", ErrNoLab, dir.Name())
		}
		return nil, err
	}
	conn := channel.New(c.(*net.UnixConn))
	r.Version = order.Version
	if err := conn.Send(r, files...); err != nil {
		conn.Close()
		return nil, err
	}
	return &exchange{conn: conn, stop: context.AfterFunc(ctx, func() { conn.Close() })}, nil
}

// next is the next reply. An error that the holder reports is an error.
func (e *exchange) next(ctx context.Context) (order.Reply, []*os.File, error) {
	var r order.Reply
	files, err := e.conn.Receive(&r)
	switch {
	case ctx.Err() != nil:
		channel.CloseAll(files)
		return r, nil, ctx.Err()
	case err != nil:
		return r, nil, fmt.Errorf("the lab's holder ended: %w", err)
	case r.Error != "":
		channel.CloseAll(files)
		return r, nil, errors.New(r.Error)
	}
	return r, files, nil
}

// note sends a later message.
func (e *exchange) note(n order.Note) error { return e.conn.Send(n) }

func (e *exchange) close() {
	e.stop()
	e.conn.Close()
}

// do is a request with nothing between it and its last reply but progress.
func do(ctx context.Context, dir labdir.Dir, r order.Request, progress func(string)) (order.Reply, error) {
	e, err := ask(ctx, dir, r)
	if err != nil {
		return order.Reply{}, err
	}
	defer e.close()
	for {
		reply, files, err := e.next(ctx)
		channel.CloseAll(files)
		if err != nil || reply.Done {
			return reply, err
		}
		if progress != nil && reply.Progress != "" {
			progress(reply.Progress)
		}
	}
}
