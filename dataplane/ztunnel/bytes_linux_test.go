// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// echoApp sends back what it reads, at once.
func echoApp(t *testing.T, ns *netns.NS, port uint16) {
	t.Helper()
	serve(t, ns, port, func(c *net.TCPConn) {
		defer c.Close()
		_, _ = io.Copy(c, c)
	})
}

// TestBytesOfLiveConnections: a scrape and the config dump see the bytes of connections that go on, and what is counted at
// the end is exactly what was moved.
func TestBytesOfLiveConnections(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	echoApp(t, l.b, 8080)
	echoApp(t, l.x, 8080)
	for _, c := range []struct {
		name     string
		from     *netns.NS
		to       netip.Addr
		security string
		reporter []*node
	}{
		{"a tunnel", l.a, addrB.v4, "mutual_tls", []*node{l.za, l.zb}},
		{"plain outbound", l.a, addrX.v4, "unknown", []*node{l.za}},
		{"plain inbound", l.x, addrB.v4, "unknown", []*node{l.zb}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := c.from.DialTCP(t.Context(), netip.AddrPortFrom(c.to, 8080), netns.SocketOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			counted := func(n int) {
				t.Helper()
				for _, z := range c.reporter {
					for _, name := range []string{"istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"} {
						eventually(t, fmt.Sprintf("%s is %d", name, n), func() bool {
							return strings.HasSuffix(z.sample(name, `connection_security_policy="`+c.security+`"`), fmt.Sprintf("} %d", n))
						})
					}
				}
			}
			total := 0
			for _, size := range []int{5, 1000, 300_000} {
				total += size
				go func() { _, _ = conn.Write(make([]byte, size)) }()
				if _, err := io.ReadFull(conn, make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				counted(total)
			}
			c.reporter[0].proxies(func(p *proxy) {
				d := p.dumpConnections()
				for _, listed := range append(d.Inbound, d.Outbound...) {
					if listed.BytesSent != uint64(total) || listed.BytesRecv != uint64(total) {
						t.Errorf("dumped as %+v, want %d bytes both ways", listed, total)
					}
				}
				if len(d.Inbound)+len(d.Outbound) != 1 {
					t.Errorf("dumped %+v", d)
				}
				for _, pooled := range p.dumpPool() {
					if pooled.Opened.IsZero() || time.Since(pooled.Opened) > patience {
						t.Errorf("pooled since %s", pooled.Opened)
					}
				}
			})
			conn.CloseWrite()
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("the end: %v", err)
			}
			for _, z := range c.reporter {
				e := z.log.take(t, "the connection", complete)
				if e.Record.BytesSent != uint64(total) || e.Record.BytesRecv != uint64(total) {
					t.Errorf("logged %d and %d bytes, want %d", e.Record.BytesSent, e.Record.BytesRecv, total)
				}
			}
			counted(total)
		})
	}
}
