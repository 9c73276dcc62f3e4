// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

// echo answers each connection with its letter.
type echo struct {
	letter byte
	served atomic.Int64
	wg     sync.WaitGroup
}

func (e *echo) serve(c *net.TCPConn) {
	e.served.Add(1)
	e.wg.Go(func() {
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
			_, _ = c.Write([]byte{e.letter})
		}
	})
}

// run accepts until a deadline is set on l or l is closed.
func (e *echo) run(l *net.TCPListener) (stopped <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := netns.Accept(l, netns.SocketOptions{})
			if err != nil {
				return
			}
			e.serve(c)
		}
	}()
	return done
}

// call makes one connection and returns the letter that answered.
func call(ctx context.Context, n *netns.NS, to netip.AddrPort) (byte, error) {
	c, err := n.DialTCP(ctx, to, netns.SocketOptions{})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := c.Write([]byte("?")); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	return b[0], nil
}

// TestHandOverResetsNobody holds decision 10: callers that never stop, a full queue, and a listener that closes.
func TestHandOverResetsNobody(t *testing.T) {
	reuse := netns.SocketOptions{ReusePort: true}
	for _, family := range []struct{ bind, to string }{{"0.0.0.0:0", "10.9.0.2"}, {"[::]:0", "fd09::2"}, {"[::]:0", "10.9.0.2"}} {
		for _, closing := range []string{"older", "newer"} {
			t.Run(family.bind+"-"+family.to+"-"+closing, func(t *testing.T) {
				client, server := pair(t)
				first := listen(t, server, family.bind, reuse)
				addr := first.Addr().(*net.TCPAddr).AddrPort()
				second := listen(t, server, addr.String(), reuse)
				leaving, staying := first, second
				if closing == "newer" {
					leaving, staying = second, first
				}
				to := netip.AddrPortFrom(netip.MustParseAddr(family.to), addr.Port())
				handOverUnderLoad(t, client, to, leaving, staying)
			})
		}
	}
}

func handOverUnderLoad(t *testing.T, client *netns.NS, to netip.AddrPort, leaving, staying *net.TCPListener) {
	const callers, calls = 8, 150
	old, next := &echo{letter: 'o'}, &echo{letter: 'n'}
	oldDone, nextDone := old.run(leaving), next.run(staying)
	var wg sync.WaitGroup
	var failed, made atomic.Int64
	half := make(chan struct{})
	for range callers {
		wg.Go(func() {
			for range calls {
				if _, err := call(t.Context(), client, to); err != nil {
					failed.Add(1)
					t.Error(err)
				}
				if made.Add(1) == callers*calls/3 {
					close(half)
				}
			}
		})
	}
	<-half
	// The old one stops accepting while callers go on, so that its queue fills before it is handed over.
	leaving.SetDeadline(time.Unix(1, 0))
	<-oldDone
	if err := netns.HandOver(t.Context(), leaving, netns.SocketOptions{}, old.serve); err != nil {
		t.Errorf("HandOver: %v", err)
	}
	before := old.served.Load()
	wg.Wait()
	for range 50 {
		if who, err := call(t.Context(), client, to); err != nil || who != 'n' {
			t.Errorf("after the handover: answer %q, %v", who, err)
		}
	}
	if old.served.Load() != before || before == 0 || next.served.Load() == 0 {
		t.Errorf("old served %d (%d before), next %d", old.served.Load(), before, next.served.Load())
	}
	if failed.Load() != 0 {
		t.Errorf("%d of %d calls failed", failed.Load(), made.Load())
	}
	if _, err := leaving.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener handed over still accepts: %v", err)
	}
	staying.Close()
	<-nextDone
	old.wg.Wait()
	next.wg.Wait()
}

func TestHandOverServesTheQueueWithoutSuccessor(t *testing.T) {
	n := nstest.New(t)
	l := listen(t, n, "[::]:0", netns.SocketOptions{ReusePort: true})
	to := netip.AddrPortFrom(netip.IPv6Loopback(), port(l))
	const queued = 200
	conns := make([]*net.TCPConn, queued)
	for i := range conns {
		c, err := n.DialTCP(t.Context(), to, netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
	}
	e := &echo{letter: 'o'}
	if err := netns.HandOver(t.Context(), l, netns.SocketOptions{}, e.serve); err != nil {
		t.Fatal(err)
	}
	for i, c := range conns {
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	e.wg.Wait()
}

func TestHandOverEndsWithItsContext(t *testing.T) {
	n := nstest.New(t)
	l := listen(t, n, "127.0.0.1:0", netns.SocketOptions{ReusePort: true})
	ctx, stop := context.WithCancel(t.Context())
	stop()
	err := netns.HandOver(ctx, l, netns.SocketOptions{}, func(c *net.TCPConn) { c.Close() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("HandOver = %v, want context.Canceled", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		t.Errorf("Accept afterwards = %v, want closed", err)
	}
}
