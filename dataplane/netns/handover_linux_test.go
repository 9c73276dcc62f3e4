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
			c, err := l.AcceptTCP()
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
	if err := netns.HandOver(t.Context(), leaving, old.serve); err != nil {
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
	if err := netns.HandOver(t.Context(), l, e.serve); err != nil {
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
	err := netns.HandOver(ctx, l, func(c *net.TCPConn) { c.Close() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("HandOver = %v, want context.Canceled", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		t.Errorf("Accept afterwards = %v, want closed", err)
	}
}

// callers call without pause until stop; what failed is counted.
type callers struct {
	stop         context.CancelFunc
	wg           sync.WaitGroup
	made, failed atomic.Int64
}

func startCallers(t *testing.T, from *netns.NS, to netip.AddrPort, n int) *callers {
	ctx, stop := context.WithCancel(t.Context())
	c := &callers{stop: stop}
	for range n {
		c.wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := call(context.WithoutCancel(ctx), from, to); err != nil {
					c.failed.Add(1)
				}
				c.made.Add(1)
			}
		})
	}
	t.Cleanup(c.end)
	return c
}

func (c *callers) end() {
	c.stop()
	c.wg.Wait()
}

// progress waits until n more calls were made.
func (c *callers) progress(t *testing.T, n int64) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for from := c.made.Load(); c.made.Load() < from+n; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the calls stand still")
		}
	}
}

// TestHandOverEndsUnderLoadWithoutSuccessor: nobody takes over, and for every connection that is served the next one waits
// already. There is no end of what could be accepted, so HandOver must make one.
func TestHandOverEndsUnderLoadWithoutSuccessor(t *testing.T) {
	n := nstest.New(t)
	l := listen(t, n, "[::]:0", netns.SocketOptions{ReusePort: true})
	to := netip.AddrPortFrom(netip.IPv6Loopback(), port(l))
	dial := func() {
		c, err := n.DialTCP(t.Context(), to, netns.SocketOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { c.Close() })
	}
	const queued, far = 50, 1000
	for range queued {
		dial()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := 0
	err := netns.HandOver(ctx, l, func(c *net.TCPConn) {
		c.Close()
		if served++; served == far {
			cancel()
		}
		if served < 2*far {
			dial()
		}
	})
	if err != nil || served != queued {
		t.Errorf("served %d, %v; want the %d that waited", served, err, queued)
	}
}

// generation is one of several listeners that share an address.
type generation struct {
	*echo
	l       *net.TCPListener
	stopped <-chan struct{}
}

func join(t *testing.T, n *netns.NS, addr string, letter byte) *generation {
	g := &generation{echo: &echo{letter: letter}, l: listen(t, n, addr, netns.SocketOptions{ReusePort: true})}
	g.stopped = g.run(g.l)
	t.Cleanup(func() {
		g.l.Close()
		<-g.stopped
		g.wg.Wait()
	})
	return g
}

func (g *generation) leave(t *testing.T) {
	t.Helper()
	g.l.SetDeadline(time.Unix(1, 0))
	<-g.stopped
	if err := netns.HandOver(t.Context(), g.l, g.serve); err != nil {
		t.Errorf("hand over %c: %v", g.letter, err)
	}
}

// TestThirdGeneration: the steering of the first handover must not outlive the next listener's arrival, which would get
// every connection before it is ready.
func TestThirdGeneration(t *testing.T) {
	for _, family := range []struct{ bind, to string }{{"0.0.0.0:0", "10.9.0.2"}, {"[::]:0", "fd09::2"}} {
		t.Run(family.bind, func(t *testing.T) {
			client, server := pair(t)
			a := join(t, server, family.bind, 'a')
			addr := a.l.Addr().(*net.TCPAddr).AddrPort()
			b := join(t, server, addr.String(), 'b')
			calls := startCallers(t, client, netip.AddrPortFrom(netip.MustParseAddr(family.to), addr.Port()), 4)
			calls.progress(t, 100)
			a.leave(t)
			calls.progress(t, 100)
			c := join(t, server, addr.String(), 'c')
			calls.progress(t, 20) // those under way
			before := b.served.Load()
			calls.progress(t, 100)
			if b.served.Load() == before || c.served.Load() == 0 {
				t.Errorf("side by side, the second served %d and the third %d of 100", b.served.Load()-before, c.served.Load())
			}
			b.leave(t)
			calls.progress(t, 100)
			calls.end()
			if n := calls.failed.Load(); n != 0 {
				t.Errorf("%d of %d calls failed", n, calls.made.Load())
			}
		})
	}
}

// TestThreeAtOnce: where three met, the kernel's order is not the one in which they came. Whoever leaves, nobody is reset.
func TestThreeAtOnce(t *testing.T) {
	for _, family := range []struct{ bind, to string }{{"0.0.0.0:0", "10.9.0.2"}, {"[::]:0", "fd09::2"}} {
		for _, order := range [][2]int{{0, 1}, {0, 2}, {1, 0}, {1, 2}, {2, 0}, {2, 1}} {
			t.Run(fmt.Sprint(family.bind, order), func(t *testing.T) {
				client, server := pair(t)
				all := []*generation{join(t, server, family.bind, 'a')}
				addr := all[0].l.Addr().(*net.TCPAddr).AddrPort()
				all = append(all, join(t, server, addr.String(), 'b'), join(t, server, addr.String(), 'c'))
				calls := startCallers(t, client, netip.AddrPortFrom(netip.MustParseAddr(family.to), addr.Port()), 8)
				for _, i := range order {
					calls.progress(t, 100)
					all[i].leave(t)
				}
				calls.progress(t, 100)
				calls.end()
				if n := calls.failed.Load(); n != 0 {
					t.Errorf("%d of %d calls failed", n, calls.made.Load())
				}
			})
		}
	}
}
