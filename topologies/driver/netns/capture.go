// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/channel"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Capture implements lab.Driver. The recording ends at Stop, not with ctx.
func (d *Driver) Capture(ctx context.Context, t lab.Target) (lab.Capture, error) {
	dir, err := d.standing()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	e, err := ask(context.WithoutCancel(ctx), dir, order.Request{Capture: &t}, w)
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	c := &capture{e: e}
	c.reading.Go(func() {
		var to io.Writer = &c.packets
		if t.Stream != nil {
			to = t.Stream
		}
		_, c.err = io.Copy(to, r)
		r.Close()
	})
	stop := context.AfterFunc(ctx, e.close)
	defer stop()
	reply, files, err := e.next(ctx)
	channel.CloseAll(files)
	if err == nil && !reply.Started {
		err = errors.New("the holder did not say that it records")
	}
	if err != nil {
		e.close()
		c.reading.Wait()
		return nil, fmt.Errorf("capture %s: %w", t, err)
	}
	return c, nil
}

type capture struct {
	e       *exchange
	reading sync.WaitGroup
	packets bytes.Buffer // owned by reading until it is done
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
	defer c.e.close()
	cut := context.AfterFunc(ctx, c.e.close)
	defer cut()
	sendErr := c.e.note(order.Note{Stop: true})
	reply, files, err := c.e.next(ctx) // of a recording that ended before, the reason
	channel.CloseAll(files)
	if err = errors.Join(err, sendErr); err != nil {
		return nil, 0, fmt.Errorf("stop capture: %w", err)
	}
	c.reading.Wait()
	if c.err != nil {
		return nil, 0, fmt.Errorf("stop capture: %w", c.err)
	}
	return c.packets.Bytes(), reply.Drops, nil
}
