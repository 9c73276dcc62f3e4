// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

// scene is a pod with its application and proxy, and a neighbour that probes come from as well.
type scene struct {
	t              *testing.T
	pod, neighbour *netns.NS
	listeners      map[string]*net.TCPListener
}

// addresses of one family.
type addresses struct{ pod, neighbour, probe, loopback netip.Addr }

var byFamily = map[string]addresses{
	"ipv4": {netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("10.9.0.1"), mesh.ProbeSourceV4, netip.MustParseAddr("127.0.0.1")},
	"ipv6": {netip.MustParseAddr("fd09::2"), netip.MustParseAddr("fd09::1"), mesh.ProbeSourceV6, netip.IPv6Loopback()},
}

var proxyMark = netns.SocketOptions{Mark: mesh.MarkProxy}

func newScene(t *testing.T, o capture.Options) *scene {
	s := &scene{t: t, pod: nstest.New(t), neighbour: nstest.New(t), listeners: map[string]*net.TCPListener{}}
	nstest.Connect(t,
		nstest.End{NS: s.neighbour, Name: "veth0", Addresses: []string{
			"10.9.0.1/24", "fd09::1/64", mesh.ProbeSourceV4.String() + "/32", mesh.ProbeSourceV6.String() + "/128",
		}},
		nstest.End{NS: s.pod, Name: "eth0", Addresses: []string{"10.9.0.2/24", "fd09::2/64"}})
	nstest.In(t, s.pod, func() error { return defaultVia("eth0", "10.9.0.1", "fd09::1") })
	if o.IPv4 || o.IPv6 {
		apply(t, s.pod, capture.NewPlan(o))
	}
	s.listen(s.pod, "application", 8080, netns.SocketOptions{})
	s.listen(s.pod, "outbound", mesh.PortOutbound, proxyMark)
	s.listen(s.pod, "plaintext", mesh.PortPlaintext, proxyMark)
	s.listen(s.pod, "hbone", mesh.PortHBONE, proxyMark)
	s.listen(s.pod, "dns", mesh.PortDNS, proxyMark)
	s.listen(s.neighbour, "neighbour", 8080, netns.SocketOptions{})
	s.listen(s.neighbour, "resolver", 53, netns.SocketOptions{})
	return s
}

func (s *scene) listen(n *netns.NS, name string, port uint16, o netns.SocketOptions) {
	l, err := n.ListenTCP(s.t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), port), o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	s.listeners[name] = l
}

// call dials, waits for the connection at the listener named want, sends bytes both ways and returns what the server saw.
func (s *scene) call(from *netns.NS, to netip.AddrPort, o netns.SocketOptions, want string) (client, original netip.AddrPort) {
	s.t.Helper()
	ctx, stop := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer stop()
	c, err := from.DialTCP(ctx, to, o)
	if err != nil {
		s.t.Errorf("call %s: %v", to, err)
		return
	}
	defer c.Close()
	l := s.listeners[want]
	l.SetDeadline(time.Now().Add(5 * time.Second))
	in, err := l.AcceptTCP()
	if err != nil {
		s.t.Errorf("call %s: nothing arrived at %s: %v", to, want, err)
		return
	}
	defer in.Close()
	for _, way := range []struct{ from, to net.Conn }{{c, in}, {in, c}} {
		way.to.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := way.from.Write([]byte("hello")); err != nil {
			s.t.Errorf("call %s: %v", to, err)
		}
		if _, err := io.ReadFull(way.to, make([]byte, 5)); err != nil {
			s.t.Errorf("call %s: %v", to, err)
		}
	}
	original, err = capture.OriginalDestination(in)
	if err != nil && (want == "outbound" || want == "plaintext") {
		s.t.Errorf("call %s: %v", to, err)
	}
	seen := in.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port()), original
}

var dualStack = capture.Options{IPv4: true, IPv6: true}

func TestRedirection(t *testing.T) {
	s := newScene(t, dualStack)
	for family, a := range byFamily {
		t.Run(family, func(t *testing.T) {
			at := netip.AddrPortFrom
			fromProbe := netns.SocketOptions{Source: at(a.probe, 0)}
			for name, c := range map[string]struct {
				from     *netns.NS
				to       netip.AddrPort
				o        netns.SocketOptions
				want     string
				original netip.AddrPort
			}{
				"inbound":                              {s.neighbour, at(a.pod, 8080), netns.SocketOptions{}, "plaintext", at(a.pod, 8080)},
				"inbound to a port nobody has":         {s.neighbour, at(a.pod, 4711), netns.SocketOptions{}, "plaintext", at(a.pod, 4711)},
				"inbound HBONE":                        {s.neighbour, at(a.pod, mesh.PortHBONE), netns.SocketOptions{}, "hbone", at(a.pod, mesh.PortHBONE)},
				"probe":                                {s.neighbour, at(a.pod, 8080), fromProbe, "application", at(a.pod, 8080)},
				"outbound":                             {s.pod, at(a.neighbour, 8080), netns.SocketOptions{}, "outbound", at(a.neighbour, 8080)},
				"outbound to an address nobody has":    {s.pod, at(a.neighbour.Next().Next().Next(), 81), netns.SocketOptions{}, "outbound", at(a.neighbour.Next().Next().Next(), 81)},
				"outbound DNS without DNS capture":     {s.pod, at(a.neighbour, 53), netns.SocketOptions{}, "outbound", at(a.neighbour, 53)},
				"outbound by the proxy":                {s.pod, at(a.neighbour, 8080), proxyMark, "neighbour", netip.AddrPort{}},
				"application to itself on loopback":    {s.pod, at(a.loopback, 8080), netns.SocketOptions{}, "application", at(a.loopback, 8080)},
				"application to itself by pod address": {s.pod, at(a.pod, 8080), netns.SocketOptions{}, "application", at(a.pod, 8080)},
			} {
				s.t = t
				client, original := s.call(c.from, c.to, c.o, c.want)
				if c.original.IsValid() && original != c.original {
					t.Errorf("%s: original destination %s, want %s", name, original, c.original)
				}
				if c.o.Source.IsValid() && client.Addr() != a.probe {
					t.Errorf("%s: seen from %s", name, client)
				}
			}
		})
	}
}

// TestSpoofedConnection holds the whole way of a reply to an address that is not the pod's: connmark, restored mark, policy
// rule, table 100. Without the plan the same connection never stands.
func TestSpoofedConnection(t *testing.T) {
	for family, a := range byFamily {
		spoof := netns.SocketOptions{
			Mark: mesh.MarkProxy, Transparent: true, Freebind: true, BindAddrNoPort: true, Source: netip.AddrPortFrom(a.neighbour, 0),
		}
		to := netip.AddrPortFrom(a.pod, 8080)
		t.Run(family, func(t *testing.T) {
			s := newScene(t, dualStack)
			if client, _ := s.call(s.pod, to, spoof, "application"); client.Addr() != a.neighbour {
				t.Errorf("the application sees %s, want %s", client.Addr(), a.neighbour)
			}
		})
		t.Run(family+" without the plan", func(t *testing.T) {
			s := newScene(t, capture.Options{})
			ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer stop()
			c, err := s.pod.DialTCP(ctx, to, spoof)
			if err == nil {
				c.Close()
				t.Error("the connection stands: this test proves nothing")
			}
		})
	}
}

func TestBypassInbound(t *testing.T) {
	s := newScene(t, capture.Options{IPv4: true, IPv6: true, BypassInbound: true})
	for _, a := range byFamily {
		s.call(s.neighbour, netip.AddrPortFrom(a.pod, 8080), netns.SocketOptions{}, "application")
		s.call(s.pod, netip.AddrPortFrom(a.neighbour, 8080), netns.SocketOptions{}, "outbound")
	}
}

func TestFamilyThatIsOffIsUntouched(t *testing.T) {
	s := newScene(t, capture.Options{IPv4: true, DNS: true})
	v6 := byFamily["ipv6"]
	s.call(s.neighbour, netip.AddrPortFrom(v6.pod, 8080), netns.SocketOptions{}, "application")
	s.call(s.pod, netip.AddrPortFrom(v6.neighbour, 8080), netns.SocketOptions{}, "neighbour")
	s.call(s.pod, netip.AddrPortFrom(byFamily["ipv4"].neighbour, 8080), netns.SocketOptions{}, "outbound")
}

func TestDNSCapture(t *testing.T) {
	s := newScene(t, capture.Options{IPv4: true, IPv6: true, DNS: true})
	resolver := udp(t, s.neighbour, netip.AddrPortFrom(netip.IPv6Unspecified(), 53), netns.SocketOptions{})
	for family, a := range byFamily {
		to := netip.AddrPortFrom(a.neighbour, 53)
		s.call(s.pod, to, netns.SocketOptions{}, "dns")
		s.call(s.pod, to, proxyMark, "resolver")
		// On the wildcard address its replies would leave from the pod's address, and the redirection would not be undone.
		proxy := udp(t, s.pod, netip.AddrPortFrom(a.loopback, mesh.PortDNS), proxyMark)
		app := udp(t, s.pod, netip.AddrPortFrom(a.pod, 0), netns.SocketOptions{})
		query(t, family+" application", app, proxy, to)
		// The proxy repeats the query from the same address and port: without a zone of its own, conntrack would take it
		// for the application's.
		port := app.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		app.Close()
		own := udp(t, s.pod, netip.AddrPortFrom(a.pod, port), proxyMark)
		query(t, family+" proxy", own, resolver, to)
	}
}

func udp(t *testing.T, n *netns.NS, addr netip.AddrPort, o netns.SocketOptions) *net.UDPConn {
	t.Helper()
	c, err := n.ListenUDP(t.Context(), addr, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// query sends a datagram to an address, expects it at server, and the reply from that address.
func query(t *testing.T, name string, client, server *net.UDPConn, to netip.AddrPort) {
	t.Helper()
	if _, err := client.WriteToUDPAddrPort([]byte("query"), to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	server.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, from, err := server.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Errorf("%s: the query did not arrive: %v", name, err)
		return
	}
	if _, err := server.WriteToUDPAddrPort([]byte("reply"), from); err != nil {
		t.Fatal(err)
	}
	client.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, source, err := client.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "reply" {
		t.Errorf("%s: reply %q, %v", name, buf[:n], err)
	}
	if got := netip.AddrPortFrom(source.Addr().Unmap(), source.Port()); got != to {
		t.Errorf("%s: reply from %s, want %s", name, got, to)
	}
}

// TestCountersSurvive holds that applying an equal plan writes nothing.
func TestCountersSurvive(t *testing.T) {
	s := newScene(t, dualStack)
	s.call(s.neighbour, netip.AddrPortFrom(byFamily["ipv4"].pod, 8080), netns.SocketOptions{}, "plaintext")
	before := dump(t, s.pod)
	if !strings.Contains(before, "counter packets 1 bytes 60 redirect to :15006") {
		t.Errorf("no counter shows the redirected connection:\n%s", before)
	}
	if apply(t, s.pod, capture.NewPlan(dualStack)) {
		t.Error("Apply changed something")
	}
	if d := cmp.Diff(before, dump(t, s.pod)); d != "" {
		t.Errorf("counters (-before +after):\n%s", d)
	}
}

// TestRemoveRestoresDirectCalls holds that an unenrolled pod is reached directly again.
func TestRemoveRestoresDirectCalls(t *testing.T) {
	s := newScene(t, dualStack)
	if err := capture.Remove(t.Context(), s.pod); err != nil {
		t.Fatal(err)
	}
	for _, a := range byFamily {
		s.call(s.neighbour, netip.AddrPortFrom(a.pod, 8080), netns.SocketOptions{}, "application")
		s.call(s.pod, netip.AddrPortFrom(a.neighbour, 8080), netns.SocketOptions{}, "neighbour")
	}
}

func TestOriginalDestinationOfClosedConnection(t *testing.T) {
	s := newScene(t, dualStack)
	c, err := s.pod.DialTCP(t.Context(), netip.AddrPortFrom(byFamily["ipv4"].neighbour, 8080), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if dst, err := capture.OriginalDestination(c); !errors.Is(err, net.ErrClosed) && err == nil {
		t.Errorf("OriginalDestination = %s, %v", dst, err)
	}
}

func BenchmarkApplyEqual(b *testing.B) {
	n, p := nstest.New(b), capture.NewPlan(dualStack)
	apply(b, n, p)
	for b.Loop() {
		apply(b, n, p)
	}
}
