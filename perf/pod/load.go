// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambientlab/ambientlab/perf/fortiorun"
)

// bulkChunk is how much a bulk load writes, and a sink reads, in one call.
const bulkChunk = 128 << 10

const (
	dialTimeout = 20 * time.Second
	dialsAtOnce = 32
	warmUp      = 300 * time.Millisecond
)

// Generate makes the load that in asks for, until in ends.
func Generate(ctx context.Context, in io.Reader, out io.Writer) error {
	g := &generator{}
	defer g.finish()
	return converse(ctx, g, in, out)
}

// generator holds what Prepare opened. It belongs to the goroutine that reads requests.
type generator struct {
	load  Load
	conns []*net.TCPConn
	bufs  [][]byte // of each connection or worker

	written atomic.Int64
	turn    atomic.Uint64 // of the targets, for new connections
	writers sync.WaitGroup
}

func (g *generator) handle(ctx context.Context, r Request) (*Result, error) {
	switch {
	case r.Prepare != nil:
		g.finish()
		g.load = *r.Prepare
		return nil, g.prepare(ctx)
	case r.Run:
		return g.run(ctx)
	case r.Finish:
		g.finish()
		return nil, nil
	}
	return nil, errors.New("an empty request")
}

func (g *generator) finish() {
	for _, c := range g.conns {
		_ = c.Close()
	}
	g.writers.Wait()
	g.conns, g.bufs = nil, nil
}

func (g *generator) prepare(ctx context.Context) error {
	l := &g.load
	if len(l.Targets) == 0 || l.Connections < 1 {
		return errors.New("prepare: no targets, or no connections")
	}
	for range l.Connections {
		g.bufs = append(g.bufs, make([]byte, l.Payload))
	}
	if l.Kind == Connects {
		return g.warm(ctx, g.connect)
	}
	if err := g.open(ctx); err != nil {
		return err
	}
	switch l.Kind {
	case Bulk:
		for _, c := range g.conns {
			g.writers.Go(func() { g.write(c) })
		}
		return pause(ctx, warmUp)
	case Requests:
		return g.warm(ctx, g.exchange)
	case Hold:
		return nil
	}
	return fmt.Errorf("prepare: unknown kind of load %q", l.Kind)
}

// warm repeats do before anything is timed; the first failure is an error, since a measurement of failures is none.
func (g *generator) warm(ctx context.Context, do func(context.Context, int) error) error {
	res, err := fortiorun.Run(ctx, fortiorun.Options{Do: do, Workers: g.load.Connections, Rate: g.load.Rate, Duration: warmUp})
	if err == nil && res.Errors > 0 {
		err = fmt.Errorf("%d of %d failed: %s", res.Errors, res.Count, res.FirstError)
	}
	if err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	return nil
}

func (g *generator) run(ctx context.Context) (*Result, error) {
	l := &g.load
	switch l.Kind {
	case Bulk:
		began, before := time.Now(), g.written.Load()
		if err := pause(ctx, l.Duration); err != nil {
			return nil, err
		}
		bytes := g.written.Load() - before
		return &Result{Seconds: time.Since(began).Seconds(), Bytes: bytes}, nil
	case Requests, Connects:
		do := g.exchange
		if l.Kind == Connects {
			do = g.connect
		}
		began := time.Now()
		res, err := fortiorun.Run(ctx, fortiorun.Options{Do: do, Workers: l.Connections, Rate: l.Rate, Duration: l.Duration})
		if err != nil {
			return nil, err
		}
		return &Result{Seconds: time.Since(began).Seconds(), Result: res}, nil
	}
	return &Result{}, nil
}

// open makes all connections and has each answer one message, so that whatever is made for it is there.
func (g *generator) open(ctx context.Context) error {
	want, payload := byte(wantEcho), g.load.Payload
	if g.load.Kind == Bulk {
		want = wantSink
	}
	g.conns = make([]*net.TCPConn, g.load.Connections)
	errs := make([]error, g.load.Connections)
	var group sync.WaitGroup
	slots := make(chan struct{}, dialsAtOnce)
	for i := range g.conns {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			g.conns[i], errs[i] = g.dial(ctx, i)
			if errs[i] != nil {
				return
			}
			if _, errs[i] = g.conns[i].Write(header(want, payload)); errs[i] == nil && want == wantEcho {
				errs[i] = g.exchange(ctx, i)
			}
		})
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			g.drop()
			return fmt.Errorf("open connections: %w", err)
		}
	}
	return nil
}

// drop forgets the connections that could not be made.
func (g *generator) drop() {
	var made []*net.TCPConn
	for _, c := range g.conns {
		if c != nil {
			made = append(made, c)
		}
	}
	g.conns = made
	g.finish()
}

func (g *generator) dial(ctx context.Context, i int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", g.load.Targets[i%len(g.load.Targets)])
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (g *generator) exchange(_ context.Context, i int) error {
	if _, err := g.conns[i].Write(g.bufs[i]); err != nil {
		return err
	}
	_, err := io.ReadFull(g.conns[i], g.bufs[i])
	return err
}

// connect is one connection's whole life.
func (g *generator) connect(ctx context.Context, i int) error {
	c, err := g.dial(ctx, int(g.turn.Add(1)%uint64(len(g.load.Targets))))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write(append(header(wantEcho, len(g.bufs[i])), g.bufs[i]...)); err != nil {
		return err
	}
	_, err = io.ReadFull(c, g.bufs[i])
	return err
}

func (g *generator) write(c *net.TCPConn) {
	buf := make([]byte, bulkChunk)
	for {
		n, err := c.Write(buf)
		g.written.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
