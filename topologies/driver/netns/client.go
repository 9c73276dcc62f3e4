// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

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
	if err := trusted(c.(*net.UnixConn)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to lab %s: %w", dir.Name(), err)
	}
	r.Version = order.Version
	if err := conn.Send(r, files...); err != nil {
		conn.Close()
		return nil, err
	}
	return &exchange{conn: conn, stop: context.AfterFunc(ctx, func() { conn.Close() })}, nil
}

// trusted checks that whoever listens is this user or root, before it is told anything or gets a descriptor: a directory
// that was given may be anybody's (unix(7), SO_PEERCRED).
func trusted(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	return trustedUID(cred.Uid)
}

func trustedUID(uid uint32) error {
	if uid != 0 && uid != uint32(os.Geteuid()) {
		return fmt.Errorf("it is held by user %d: do that as this user", uid)
	}
	return nil
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
