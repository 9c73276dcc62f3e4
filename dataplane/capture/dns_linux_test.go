// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

// A datagram has no SO_ORIGINAL_DST: the proxy asks connection tracking where the application meant to send it.
func TestOriginalDestinationOfDatagrams(t *testing.T) {
	nstest.Require(t)
	s := newScene(t, capture.Options{IPv4: true, IPv6: true, DNS: true})
	for family, a := range byFamily {
		t.Run(family, func(t *testing.T) {
			proxyAt := netip.AddrPortFrom(a.loopback, mesh.PortDNS)
			proxy := datagrams(t, s.pod, proxyAt, proxyMark)
			resolver := netip.AddrPortFrom(a.neighbour, 53)
			app := datagrams(t, s.pod, netip.AddrPortFrom(a.pod, 0), netns.SocketOptions{})
			for _, to := range []netip.AddrPort{resolver, resolver, netip.AddrPortFrom(a.probe, 53), resolver} {
				seenAs := send(t, app, to, proxy)
				if got, err := s.pod.OriginalDestinationUDP(seenAs, proxyAt); err != nil || got != to {
					t.Errorf("a datagram to %s: got %s, %v", to, got, err)
				}
				answer(t, proxy, seenAs, app, to)
			}

			direct := datagrams(t, s.pod, netip.AddrPortFrom(a.loopback, 0), netns.SocketOptions{})
			seenAs := send(t, direct, proxyAt, proxy)
			if got, err := s.pod.OriginalDestinationUDP(seenAs, proxyAt); err != nil || got != proxyAt {
				t.Errorf("a datagram to the proxy itself: got %s, %v; want the proxy's address", got, err)
			}
			stranger := netip.AddrPortFrom(a.pod, 9)
			if got, err := s.pod.OriginalDestinationUDP(stranger, proxyAt); !errors.Is(err, netns.ErrNotTracked) {
				t.Errorf("nothing came from %s: got %s, %v", stranger, got, err)
			}
		})
	}
}

// What the proxy sends for the application must reach the resolver, not the proxy, and the answer must come back, although
// the same two ends are talking already as far as the application is concerned.
func TestForwardedQueriesAreNotCaptured(t *testing.T) {
	nstest.Require(t)
	s := newScene(t, capture.Options{IPv4: true, IPv6: true, DNS: true})
	for family, a := range byFamily {
		t.Run(family, func(t *testing.T) {
			proxy := datagrams(t, s.pod, netip.AddrPortFrom(a.loopback, mesh.PortDNS), proxyMark)
			at := netip.AddrPortFrom(a.neighbour, 53)
			resolver := datagrams(t, s.neighbour, at, netns.SocketOptions{})
			app := datagrams(t, s.pod, netip.AddrPortFrom(a.pod, 40053), netns.SocketOptions{})
			client := send(t, app, at, proxy)
			onward := datagrams(t, s.pod, netip.AddrPortFrom(a.pod, 40054), proxyMark)
			answer(t, resolver, send(t, onward, at, resolver), onward, at)
			answer(t, proxy, client, app, at)

			c, err := s.pod.DialUDP(t.Context(), at, proxyMark)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("query")); err != nil {
				t.Fatal(err)
			}
			receive(t, resolver)
		})
	}
}

func datagrams(t *testing.T, n *netns.NS, at netip.AddrPort, o netns.SocketOptions) *net.UDPConn {
	t.Helper()
	c, err := n.ListenUDP(t.Context(), at, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// send sends a datagram and returns the source that its receiver sees.
func send(t *testing.T, from *net.UDPConn, to netip.AddrPort, at *net.UDPConn) netip.AddrPort {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort([]byte("query"), to); err != nil {
		t.Fatalf("send from %s to %s: %v", from.LocalAddr(), to, err)
	}
	return receive(t, at)
}

func receive(t *testing.T, at *net.UDPConn) netip.AddrPort {
	t.Helper()
	if err := at.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, from, err := at.ReadFromUDPAddrPort(make([]byte, 64))
	if err != nil {
		t.Fatalf("receive at %s: %v", at.LocalAddr(), err)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// answer sends a datagram back and checks that it seems to come from where the question went.
func answer(t *testing.T, from *net.UDPConn, to netip.AddrPort, app *net.UDPConn, want netip.AddrPort) {
	t.Helper()
	if got := send(t, from, to, app); got != want {
		t.Errorf("the answer came from %s, want %s", got, want)
	}
}
