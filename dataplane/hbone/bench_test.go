// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/http2"
)

// carriers lists what is compared; each needs to know where its streams go.
var carriers = []struct {
	name string
	new  func(t testing.TB, dst netip.AddrPort) carrier
}{
	{"hbone", func(t testing.TB, _ netip.AddrPort) carrier { return newOurs(t) }},
	{"stock", func(t testing.TB, _ netip.AddrPort) carrier { return newStock(t) }},
	{"tls", func(t testing.TB, dst netip.AddrPort) carrier { return newBareTLS(t, dst) }},
}

// cpuTime is what the process has used so far, in user and kernel mode.
func cpuTime() time.Duration {
	var ru syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// swallow reads what an application sends and answers with one byte at the end, so that the sender knows.
func swallow(c *net.TCPConn) {
	defer c.Close()
	io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{c}, make([]byte, 256<<10))
	c.Write([]byte{1})
}

// push sends n bytes over each of conns and waits until all arrived.
func push(b testing.TB, conns []*net.TCPConn, n int) {
	var g sync.WaitGroup
	buf := make([]byte, 256<<10)
	for _, c := range conns {
		g.Go(func() {
			for left := n; left > 0; {
				m, err := c.Write(buf[:min(left, len(buf))])
				if err != nil {
					b.Error(err)
					return
				}
				left -= m
			}
			c.CloseWrite()
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				b.Error(err)
			}
			c.Close()
		})
	}
	g.Wait()
}

// throughput moves n bytes over each of streams new connections and returns the CPU and wall time that took.
func throughput(b testing.TB, p *proxy, streams, n int) (cpu, wall time.Duration) {
	conns := make([]*net.TCPConn, streams)
	for i := range conns {
		conns[i] = p.dial(b)
	}
	c0, t0 := cpuTime(), time.Now()
	push(b, conns, n)
	return cpuTime() - c0, time.Since(t0)
}

func BenchmarkThroughput(b *testing.B) {
	for _, streams := range []int{1, 8} {
		for _, k := range carriers {
			b.Run(fmt.Sprintf("%s/streams=%d", k.name, streams), func(b *testing.B) {
				dst := serveApps(b, swallow)
				p := startProxy(b, k.new(b, dst), dst)
				const unit = 1 << 20
				throughput(b, p, streams, 4*unit)
				b.SetBytes(unit)
				b.ReportAllocs()
				b.ResetTimer()
				cpu, _ := throughput(b, p, streams, max(b.N*unit/streams, 1))
				b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N)/1024, "cpu-ns/KiB")
			})
		}
	}
}

// BenchmarkThroughputRatio interleaves the carriers, so that a noisy machine is noisy for all of them, and reports
// medians: CPU of the whole process per KiB, both proxies and both applications included.
func BenchmarkThroughputRatio(b *testing.B) {
	const rounds, size = 7, 128 << 20
	for _, streams := range []int{1, 8} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			dst := serveApps(b, swallow)
			proxies := make([]*proxy, len(carriers))
			for i, k := range carriers {
				proxies[i] = startProxy(b, k.new(b, dst), dst)
				throughput(b, proxies[i], streams, 8<<20/streams)
			}
			cpu, rate := make([][]float64, len(carriers)), make([][]float64, len(carriers))
			b.ResetTimer()
			for range b.N {
				for range rounds {
					for i, p := range proxies {
						c, w := throughput(b, p, streams, size/streams)
						cpu[i] = append(cpu[i], float64(c.Nanoseconds())/(size>>10))
						rate[i] = append(rate[i], size/1e6/w.Seconds())
					}
				}
			}
			for i, k := range carriers {
				b.ReportMetric(median(cpu[i]), k.name+"-cpu-ns/KiB")
				b.ReportMetric(median(rate[i]), k.name+"-MB/s")
			}
			b.ReportMetric(median(cpu[0])/median(cpu[1]), "hbone/stock")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// echoByte answers each byte until the end, with little garbage.
func echoByte(c *net.TCPConn) {
	defer c.Close()
	var b [1]byte
	for {
		if _, err := c.Read(b[:]); err != nil {
			return
		}
		if _, err := c.Write(b[:]); err != nil {
			return
		}
	}
}

// pingPong sends a byte and waits for its echo.
func pingPong(b testing.TB, c *net.TCPConn) {
	var buf [1]byte
	if _, err := c.Write(buf[:]); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf[:]); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPingPong is the round trip of one byte on an open stream.
func BenchmarkPingPong(b *testing.B) {
	for _, k := range carriers {
		b.Run(k.name, func(b *testing.B) {
			dst := serveApps(b, echoByte)
			c := startProxy(b, k.new(b, dst), dst).dial(b)
			defer c.Close()
			pingPong(b, c)
			b.ReportAllocs()
			cpu := cpuTime()
			for b.Loop() {
				pingPong(b, c)
			}
			b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkRequest is a whole short connection: connect, one byte there and back, close. hbone and stock open a stream
// on a connection that stands, tls a connection of its own.
func BenchmarkRequest(b *testing.B) {
	for _, k := range carriers {
		b.Run(k.name, func(b *testing.B) {
			dst := serveApps(b, echoByte)
			p := startProxy(b, k.new(b, dst), dst)
			request := func() {
				c := p.dial(b)
				pingPong(b, c)
				c.SetLinger(0) // leaves no TIME_WAIT behind
				c.Close()
			}
			request()
			b.ReportAllocs()
			cpu := cpuTime()
			for b.Loop() {
				request()
			}
			b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
		})
	}
}

// BenchmarkConnect is a new tunnel on a new connection each time: TCP, TLS, HTTP/2, CONNECT.
func BenchmarkConnect(b *testing.B) {
	b.Run("hbone", func(b *testing.B) {
		_, hop := startServer(b, serverConfig())
		dst := serveApps(b, echoByte)
		ctx := context.Background()
		b.ReportAllocs()
		for b.Loop() {
			p := startPool(b, clientConfig())
			s, err := p.Open(ctx, Key{Addr: hop}, &Request{Authority: dst.String()})
			if err != nil {
				b.Fatal(err)
			}
			s.Reset(http2.ErrCodeCancel)
			p.Close()
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
	})
	b.Run("stock", func(b *testing.B) {
		s := newStock(b)
		dst := serveApps(b, echoByte)
		b.ReportAllocs()
		for b.Loop() {
			tr := &http2.Transport{TLSClientConfig: pki().client}
			r, w := io.Pipe()
			resp, err := tr.RoundTrip(connectRequest(s.hop, dst.String(), r))
			if err != nil {
				b.Fatal(err)
			}
			w.Close()
			resp.Body.Close()
			tr.CloseIdleConnections()
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
	})
	b.Run("tls", func(b *testing.B) {
		dst := serveApps(b, echoByte)
		t := newBareTLS(b, dst)
		b.ReportAllocs()
		for b.Loop() {
			tc, err := tls.Dial("tcp", t.hop.String(), pki().client)
			if err != nil {
				b.Fatal(err)
			}
			tc.Close()
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
	})
}

// held is what the process holds in heap and stacks after a collection.
func held() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

// BenchmarkIdle prints what an idle stream and an idle connection hold, heap and goroutine stacks, each end counted
// once. A stream's figure includes the two net.TCPConns and the goroutine that belong to its applications' sockets.
func BenchmarkIdle(b *testing.B) {
	const streams, conns = 90, 50
	_, hop := startServer(b, serverConfig())
	dst := serveApps(b, echoByte)
	ctx := context.Background()
	for b.Loop() {
		p := startPool(b, clientConfig())
		open := func(k Key) *Stream {
			s, err := p.Open(ctx, k, &Request{Authority: dst.String()})
			if err != nil {
				b.Fatal(err)
			}
			return s
		}
		first := open(Key{Addr: hop})
		before := held()
		var all []*Stream
		for i := range conns {
			all = append(all, open(Key{Addr: hop, Source: strconv.Itoa(i)}))
		}
		perConn := (held() - before) / conns / 2
		before = held()
		for range streams {
			all = append(all, open(Key{Addr: hop}))
		}
		perStream := (held() - before) / streams / 2
		for _, s := range append(all, first) {
			s.Reset(http2.ErrCodeCancel)
		}
		p.Close()
		b.ReportMetric(perConn, "B/idle-conn")
		b.ReportMetric(perStream, "B/idle-stream")
		b.ReportMetric(float64(unsafe.Sizeof(stream{})), "B/stream-struct")
	}
	b.ReportMetric(0, "ns/op")
}
