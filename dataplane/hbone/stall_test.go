// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// batches serves an application that acknowledges batches: eight bytes of length, the bytes, one byte back.
func batches(c *net.TCPConn) {
	defer c.Close()
	buf := make([]byte, 64<<10)
	for {
		if _, err := io.ReadFull(c, buf[:8]); err != nil {
			return
		}
		for left := int(binary.BigEndian.Uint64(buf)); left > 0; {
			n, err := c.Read(buf[:min(left, len(buf))])
			if err != nil {
				return
			}
			left -= n
		}
		if _, err := c.Write(buf[:1]); err != nil {
			return
		}
	}
}

// sendBatch sends n bytes to a batches application and waits for the acknowledgement.
func sendBatch(c *net.TCPConn, n int) error {
	buf := make([]byte, 32<<10)
	binary.BigEndian.PutUint64(buf, uint64(n))
	if _, err := c.Write(buf[:8]); err != nil {
		return err
	}
	for ; n > 0; n -= min(n, len(buf)) {
		if _, err := c.Write(buf[:min(n, len(buf))]); err != nil {
			return err
		}
	}
	_, err := io.ReadFull(c, buf[:1])
	return err
}

// moveAll sends n bytes over each tunnel at once and returns how long that took.
func moveAll(t testing.TB, tunnels []*tunnel, n int) time.Duration {
	t.Helper()
	start := time.Now()
	var g sync.WaitGroup
	for _, tun := range tunnels {
		g.Go(func() {
			if err := sendBatch(tun.TCPConn, n); err != nil {
				t.Errorf("send: %v", err)
			}
		})
	}
	g.Wait()
	return time.Since(start)
}

// serveStalled serves applications that read nothing until resume is closed.
func serveStalled(t testing.TB, resume <-chan struct{}) netip.AddrPort {
	return serveApps(t, func(c *net.TCPConn) { stall(c, resume) })
}

func stall(c *net.TCPConn, resume <-chan struct{}) {
	defer c.Close()
	c.SetReadBuffer(64 << 10) // else the kernel alone holds megabytes per stream
	<-resume
	io.Copy(io.Discard, c)
}

// serveGrown is serveStalled for applications that take one batch before.
func serveGrown(t testing.TB, resume <-chan struct{}) netip.AddrPort {
	return serveApps(t, func(c *net.TCPConn) {
		var size [8]byte
		if _, err := io.ReadFull(c, size[:]); err == nil {
			io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint64(size[:])))
			c.Write([]byte{1})
		}
		stall(c, resume)
	})
}

// flood sends on tun without end and counts what the tunnel took.
func flood(tun *tunnel, sent *atomic.Int64) {
	buf := make([]byte, 64<<10)
	for {
		n, err := tun.Write(buf)
		sent.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// waitStalled waits until a counter stands still.
func waitStalled(t testing.TB, sent *atomic.Int64) {
	t.Helper()
	last, since := int64(-1), time.Now()
	eventually(t, "the floods stall", func() bool {
		if now := sent.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
}

// TestStalledStreamsLeaveOthersAlone: of 200 streams on one connection, some have an application that takes nothing, or
// nothing any more after their windows have grown, while the peer sends all that it may. The others' throughput must
// stay within 10 % of what it is without them.
func TestStalledStreamsLeaveOthersAlone(t *testing.T) {
	for _, stalled := range []int{1, 8, 150} {
		t.Run(fmt.Sprint(stalled), func(t *testing.T) { testStalled(t, stalled, 200-stalled, false) })
		t.Run(fmt.Sprint(stalled, " grown"), func(t *testing.T) { testStalled(t, stalled, 200-stalled, true) })
	}
}

func testStalled(t *testing.T, stalled, flowing int, grown bool) {
	l := newStallLab(t, grown)
	// Two connections alike, but for the stalled streams on one.
	_, free, _ := l.connect(t, 0, flowing)
	p, loaded, asleep := l.connect(t, stalled, flowing)
	t.Cleanup(func() { close(l.resume) })
	if grown {
		moveAll(t, asleep, 128<<20/stalled/scale)
	}
	var sent atomic.Int64
	var g sync.WaitGroup
	for _, tun := range asleep {
		g.Go(func() { flood(tun, &sent) })
	}
	t.Cleanup(func() {
		for _, tun := range asleep {
			tun.Close()
		}
		g.Wait()
	})
	waitStalled(t, &sent)
	compare(t, free, loaded)
	t.Logf("%d stalled: %d bytes stuck, %d of them queued", stalled, sent.Load(), processBudget.Used())
	if n := len(p.Conns()); n != 1 {
		t.Errorf("%d connections, want all streams on one", n)
	}
	if n := processBudget.Used(); n > 4<<20 {
		t.Errorf("one connection queues %d bytes", n)
	}
}

// stallLab has applications that take all, and others that take nothing until resume is closed.
type stallLab struct {
	server            ServerConfig
	sleepers, workers netip.AddrPort
	resume            chan struct{}
}

func newStallLab(t *testing.T, grown bool) *stallLab {
	l := &stallLab{server: serverConfig(), resume: make(chan struct{})}
	if grown {
		l.sleepers = serveGrown(t, l.resume)
	} else {
		l.sleepers = serveStalled(t, l.resume)
	}
	l.workers = serveApps(t, batches)
	l.server.Handler = func(ctx context.Context, in *Inbound) {
		var d net.Dialer
		up, err := d.DialContext(ctx, "tcp", in.Authority)
		if err != nil {
			in.Refuse(503)
			return
		}
		if in.Authority == l.sleepers.String() {
			up.(*net.TCPConn).SetWriteBuffer(64 << 10)
		}
		in.Accept(ctx, up.(*net.TCPConn))
	}
	return l
}

// connect opens tunnels on a connection of their own.
func (l *stallLab) connect(t *testing.T, stalled, flowing int) (p *Pool, tunnels, asleep []*tunnel) {
	pc := clientConfig()
	pc.MaxStreams = 200
	_, hop := startServer(t, l.server)
	p = startPool(t, pc)
	for range stalled {
		tun := openTunnel(t, p, hop, l.sleepers)
		tun.SetWriteBuffer(64 << 10)
		asleep = append(asleep, tun)
	}
	for range flowing {
		tunnels = append(tunnels, openTunnel(t, p, hop, l.workers))
	}
	return p, tunnels, asleep
}

// compare demands that the loaded tunnels take no longer than the free ones. On a machine that others use, and under the
// race detector, times say little more than that nothing starves.
func compare(t *testing.T, free, loaded []*tunnel) {
	t.Helper()
	size, rounds, limit := 16<<20/len(free)/scale, 3, 3.0
	end := time.Now()
	if *slow {
		end = end.Add(60 * time.Second)
		size, rounds = 64<<20/len(free)/scale, 11
	}
	if *slow && scale == 1 {
		limit = 1.10
	}
	var ratios []float64
	ratio := 0.0
	// Rounds alternate, so that a noisy machine is noisy for both; when it is very noisy, more of them decide.
	for n := 0; n < rounds || time.Now().Before(end) || (ratio > limit && n < 55); n++ {
		var a, b time.Duration
		if n%2 == 0 {
			a = moveAll(t, free, size)
		}
		b = moveAll(t, loaded, size)
		if n%2 == 1 {
			a = moveAll(t, free, size)
		}
		ratios = append(ratios, b.Seconds()/a.Seconds())
		ratio = median(ratios)
	}
	t.Logf("others take %.3f times as long (median of %d rounds)", ratio, len(ratios))
	if ratio > limit {
		t.Errorf("stalled streams slow the others down: %.3f times as long", ratio)
	}
}
