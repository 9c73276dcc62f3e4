// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
)

// What a connection is for: its first byte. An echo's is followed by the size of its messages, four bytes.
const (
	wantSink = 'S'
	wantEcho = 'E'
)

const headerLen = 5

func header(want byte, payload int) []byte {
	return binary.BigEndian.AppendUint32([]byte{want}, uint32(payload))
}

// maxPayload bounds a message, which is held in memory.
const maxPayload = 1 << 20

// Ports is a run of ports: there are only so many connections between two addresses and one port in a minute.
type Ports struct {
	First, Count int
}

// Targets are the ports on host.
func (p Ports) Targets(host netip.Addr) []string {
	out := make([]string, p.Count)
	for i := range out {
		out[i] = netip.AddrPortFrom(host, uint16(p.First+i)).String()
	}
	return out
}

// Serve answers connections on every port of p until in ends.
func Serve(ctx context.Context, p Ports, in io.Reader, out io.Writer) error {
	return serveWith(ctx, p, in, out, func(_ context.Context, _ int, c *net.TCPConn) { _ = serveConn(c) })
}

// serveWith listens, handles each connection in a goroutine, and answers on out until in ends.
func serveWith(ctx context.Context, p Ports, in io.Reader, out io.Writer, handle func(ctx context.Context, port int, c *net.TCPConn)) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	for i := range p.Count {
		l, err := lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", p.First+i))
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		context.AfterFunc(ctx, func() { _ = l.Close() })
		group.Go(func() { acceptAll(ctx, l, &group, func(c *net.TCPConn) { handle(ctx, i, c) }) })
	}
	return converse(ctx, idle{}, in, out)
}

func acceptAll(ctx context.Context, l net.Listener, group *sync.WaitGroup, handle func(*net.TCPConn)) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // a connection that was reset in the queue
		}
		group.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			defer func() { _ = c.Close() }()
			handle(c.(*net.TCPConn))
		})
	}
}

func serveConn(c *net.TCPConn) error {
	var h [headerLen]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return err
	}
	if h[0] == wantSink {
		return sink(c)
	}
	n := int(binary.BigEndian.Uint32(h[1:]))
	if h[0] != wantEcho || n > maxPayload {
		return fmt.Errorf("unknown request %v", h)
	}
	buf := make([]byte, n)
	for {
		if _, err := io.ReadFull(c, buf); err != nil {
			return err
		}
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
}

func sink(c *net.TCPConn) error {
	buf := make([]byte, bulkChunk)
	for {
		if _, err := c.Read(buf); err != nil {
			return err
		}
	}
}
