// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

// BenchmarkCalls measures the real binary, which carries both sides of each call: a new connection with one request, a
// request on a connection that stands, and a MiB in one direction. "direct" is the same without capture.
func BenchmarkCalls(b *testing.B) {
	web, cart := nstest.New(b), nstest.New(b)
	nstest.Connect(b, nstest.End{NS: web, Name: "eth0", Addresses: []string{"10.77.0.2/24"}}, nstest.End{NS: cart, Name: "eth0", Addresses: []string{"10.77.0.3/24"}})
	listen(b, cart, streamPort, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	// The server ends first, so that no port of the client stays in TIME_WAIT.
	listen(b, cart, shortPort, func(c *net.TCPConn) {
		buf := make([]byte, shortBytes)
		if _, err := io.ReadFull(c, buf); err == nil {
			_, _ = c.Write(buf)
		}
	})
	b.Run("direct", func(b *testing.B) { benchmarkCalls(b, web) })
	d := startDaemon(b, "LOG_LEVEL=warn")
	d.enrol(b, "web", web)
	d.enrol(b, "cart", cart)
	b.Run("tunnel", func(b *testing.B) { benchmarkCalls(b, web) })
}

const (
	streamPort, shortPort = 8080, 8081
	shortBytes            = 64
)

// listen serves a port until the benchmark ends.
func listen(b *testing.B, ns *netns.NS, port uint16, serve func(*net.TCPConn)) {
	b.Helper()
	l, err := ns.ListenTCP(b.Context(), netip.AddrPortFrom(cartAddr, port), netns.SocketOptions{})
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveAll(l, serve)
	}()
	b.Cleanup(func() {
		l.Close()
		<-served
	})
}

func benchmarkCalls(b *testing.B, from *netns.NS) {
	dial := func(b *testing.B, port uint16) *net.TCPConn {
		c, err := from.DialTCP(b.Context(), netip.AddrPortFrom(cartAddr, port), netns.SocketOptions{})
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	exchange := func(b *testing.B, c *net.TCPConn, buf []byte) {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("connection", func(b *testing.B) {
		buf := make([]byte, shortBytes)
		for b.Loop() {
			c := dial(b, shortPort)
			exchange(b, c, buf)
			if _, err := c.Read(buf); !errors.Is(err, io.EOF) {
				b.Fatalf("want the end, got %v", err)
			}
			c.Close()
		}
	})
	b.Run("request", func(b *testing.B) {
		c, buf := dial(b, streamPort), make([]byte, 1024)
		defer c.Close()
		for b.Loop() {
			exchange(b, c, buf)
		}
	})
	b.Run("bytes", func(b *testing.B) {
		const chunk = 1 << 20
		b.SetBytes(2 * chunk)
		c, out, in := dial(b, streamPort), make([]byte, chunk), make([]byte, chunk)
		defer c.Close()
		for b.Loop() {
			sent := make(chan error, 1)
			go func() {
				_, err := c.Write(out)
				sent <- err
			}()
			if _, err := io.ReadFull(c, in); err != nil {
				b.Fatal(err)
			}
			if err := <-sent; err != nil {
				b.Fatal(err)
			}
		}
	})
}
