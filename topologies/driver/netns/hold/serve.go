// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/channel"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
)

// client is one request under way.
type client struct {
	conn  *channel.Conn
	files []*os.File // that came with the request; closed after it
	notes chan order.Note
}

func (h *holder) accept(ctx context.Context) {
	for {
		c, err := h.listener.AcceptUnix()
		if err != nil {
			return // closed
		}
		h.work.Go(func() { h.serve(ctx, channel.New(c)) })
	}
}

// serve answers the one request of a connection. The request is withdrawn when the connection ends.
func (h *holder) serve(ctx context.Context, conn *channel.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var r order.Request
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	files, err := conn.Receive(&r)
	if err != nil {
		stop()
		conn.Close()
		return
	}
	c := &client{conn: conn, files: files, notes: make(chan order.Note, 16)}
	defer channel.CloseAll(files)
	stop() // from here on, the last reply comes before the end
	var listener sync.WaitGroup
	listener.Go(func() { c.listen(ctx, cancel) })
	reply, answered, err := h.follow(ctx, c, &r)
	reply.Done = err == nil
	if err != nil {
		if !errors.Is(err, context.Canceled) { // else it was withdrawn, and nobody hears the answer
			h.log.Warn("request refused", "err", err)
		}
		reply.Error = err.Error()
	}
	_ = conn.Send(reply, answered...)
	channel.CloseAll(answered)
	if r.Down != nil || (r.Up != nil && err != nil) {
		// The connection, and the one who listens to it, end with this process: so the client knows when all is gone. Of a lab that did not come up
		// nothing is left.
		h.downOnce.Do(func() { close(h.down) })
		return
	}
	conn.Close()
	listener.Wait()
}

func (c *client) listen(ctx context.Context, cancel func()) {
	defer cancel()
	for {
		var n order.Note
		files, err := c.conn.Receive(&n)
		channel.CloseAll(files)
		if err != nil {
			return
		}
		select {
		case c.notes <- n:
		case <-ctx.Done():
			return
		}
	}
}

func (c *client) progress(format string, args ...any) {
	_ = c.conn.Send(order.Reply{Progress: fmt.Sprintf(format, args...)}) // a client that is gone cancels by itself
}

// follow does what r asks. The files it returns go out with the reply.
func (h *holder) follow(ctx context.Context, c *client, r *order.Request) (order.Reply, []*os.File, error) {
	var none order.Reply
	if r.Version != order.Version {
		return none, nil, fmt.Errorf("the lab's holder speaks version %d, this program %d: take the lab down with the program that brought it up", order.Version, r.Version)
	}
	switch {
	case r.Up != nil:
		return none, nil, h.bringUp(ctx, c, r.Up)
	case r.Down != nil:
		return none, nil, nil // serve ends the lab after the reply
	case r.Info != nil:
		return order.Reply{Info: h.info()}, nil, nil
	}
	s, err := h.standing()
	if err != nil {
		return none, nil, err
	}
	switch {
	case r.Pods != nil:
		return order.Reply{Pods: s.podInfos()}, nil, nil
	case r.Apply != nil:
		return none, nil, s.apply(*r.Apply)
	case r.Delete != nil:
		return none, nil, s.remove(ctx, *r.Delete)
	case r.Exec != nil:
		exit, err := s.exec(ctx, c, r.Exec)
		return order.Reply{Exit: exit, Errno: errnoOf(err)}, nil, err
	case r.Daemon != nil:
		return s.daemonRequest(ctx, r.Daemon)
	case r.Dial != nil:
		f, err := s.dial(ctx, r.Dial)
		return none, f, err
	case r.Link != nil:
		reply, err := s.link(ctx, r.Link)
		return reply, nil, err
	case r.Capture != nil:
		drops, err := s.capture(ctx, c, r.Capture)
		return order.Reply{Drops: drops}, nil, err
	case r.Inspect != nil:
		in, err := s.inspect(ctx, r.Inspect)
		return order.Reply{Inspection: in}, nil, err
	}
	return none, nil, errors.New("an empty request")
}

// standing is the lab, once Up has begun to build it.
func (h *holder) standing() (*site, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.site == nil {
		return nil, errors.New("the lab is not up yet")
	}
	return h.site, nil
}
