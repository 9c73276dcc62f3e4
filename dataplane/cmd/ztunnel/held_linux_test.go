// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

const (
	heldConnections = 4000 // each takes four descriptors of the test and two of the daemon, which has both its ends
	openers         = 8
)

// BenchmarkHeldConnections prints the resident memory of the real binary, which carries both sides, before, with and 30 s
// after many open connections, and what of the rest is the Go runtime's own, which it never gives back.
func BenchmarkHeldConnections(b *testing.B) {
	web, cart := nstest.New(b), nstest.New(b)
	nstest.Connect(b, nstest.End{NS: web, Name: "eth0", Addresses: []string{"10.77.0.2/24"}}, nstest.End{NS: cart, Name: "eth0", Addresses: []string{"10.77.0.3/24"}})
	listen(b, cart, streamPort, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	d := startDaemon(b, "LOG_LEVEL=warn")
	d.enrol(b, "web", web)
	d.enrol(b, "cart", cart)
	hold(b, web, 1)
	before := d.settled(b)
	release := hold(b, web, heldConnections)
	held := d.settled(b)
	release()
	<-time.After(30*time.Second - settle)
	after := d.settled(b)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(before, "rss-MB")
	b.ReportMetric(held, "rss-10k-MB")
	b.ReportMetric(after, "rss-after-MB")
	b.ReportMetric(after/before, "after/before")
	page := d.get("15020", "/metrics")
	for line := range strings.Lines(page) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil && strings.HasPrefix(name, "go_memstats_") && strings.HasSuffix(name, "_bytes") {
			b.ReportMetric(v/1e6, strings.TrimSuffix(strings.TrimPrefix(name, "go_memstats_"), "_bytes")+"-MB")
		}
	}
}

// hold opens n connections and waits until each has carried a byte there and back. They end with the benchmark, or before
// by what is returned.
func hold(b *testing.B, from *netns.NS, n int) (release func()) {
	b.Helper()
	conns := make([]*net.TCPConn, n)
	release = func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}
	b.Cleanup(release)
	var g errgroup.Group
	g.SetLimit(openers)
	for i := range conns {
		g.Go(func() error {
			c, err := from.DialTCP(b.Context(), netip.AddrPortFrom(cartAddr, streamPort), netns.SocketOptions{})
			if err != nil {
				return err
			}
			conns[i] = c
			buf := []byte{1}
			_, werr := c.Write(buf)
			_, rerr := io.ReadFull(c, buf)
			return errors.Join(werr, rerr)
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return release
}
