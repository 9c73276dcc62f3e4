// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
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
