// SPDX-License-Identifier: Apache-2.0

package nodenet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

// cluster is two nodes with two pods each and an outside host. Pods are wired as the ptp plugin does it.
type cluster struct {
	t       *testing.T
	nodes   [2]*netns.NS
	pods    map[string]*netns.NS // "node/pod", counted from 0
	outside *netns.NS
	config  [2]nodenet.Config
}

func podAddr(node, pod int, six bool) netip.Addr {
	if six {
		return netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%d::%d", node, pod+2))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.244.%d.%d", node, pod+2))
}

func newCluster(t *testing.T, services ...nodenet.Service) *cluster {
	c := &cluster{t: t, pods: map[string]*netns.NS{}}
	root := nstest.New(t)
	hosts := []nodenet.Host{node1, node2}
	for i, h := range hosts {
		c.nodes[i] = nstest.New(t)
		attach(t, root, c.nodes[i], "p-"+h.Name, h.Addresses)
		c.config[i] = nodenet.Config{
			Self: h, Peers: []nodenet.Host{hosts[1-i], outside}, ServiceSubnets: serviceSubnets, Services: services,
		}
		for p := range 2 {
			c.addPod(i, p)
		}
	}
	c.outside = nstest.New(t)
	attach(t, root, c.outside, "p-outside", outside.Addresses)
	apply(t, c.outside, plan(t, nodenet.Config{Self: outside, Peers: hosts}))
	c.apply(services...)
	return c
}

func (c *cluster) apply(services ...nodenet.Service) {
	for i, n := range c.nodes {
		c.config[i].Services = services
		apply(c.t, n, plan(c.t, c.config[i]))
	}
}

func (c *cluster) pod(node, pod int) *netns.NS { return c.pods[fmt.Sprintf("%d/%d", node, pod)] }

func (c *cluster) addPod(node, pod int) {
	n, host := nstest.New(c.t), fmt.Sprintf("veth%d", pod)
	c.pods[fmt.Sprintf("%d/%d", node, pod)] = n
	gateways := []string{fmt.Sprintf("10.244.%d.1", node), fmt.Sprintf("fd00:10:244:%d::1", node)}
	nstest.Connect(c.t,
		nstest.End{NS: c.nodes[node], Name: host, Addresses: []string{gateways[0] + "/32", gateways[1] + "/128"}},
		nstest.End{NS: n, Name: "eth0", Addresses: []string{podAddr(node, pod, false).String() + "/32", podAddr(node, pod, true).String() + "/128"}})
	if err := nodenet.WaitUp(c.t.Context(), c.nodes[node], host); err != nil {
		c.t.Fatal(err)
	}
	if err := nodenet.WaitUp(c.t.Context(), n, "eth0"); err != nil {
		c.t.Fatal(err)
	}
	nstest.In(c.t, c.nodes[node], func() error {
		for _, six := range []bool{false, true} {
			if err := onLink(host, podAddr(node, pod, six)); err != nil {
				return err
			}
		}
		return nil
	})
	nstest.In(c.t, n, func() error {
		for _, gw := range gateways {
			if err := onLink("eth0", netip.MustParseAddr(gw)); err != nil {
				return err
			}
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
				return err
			}
		}
		return nil
	})
}

func onLink(link string, a netip.Addr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if a.Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return netlink.RouteAdd(r)
}

// serve answers connections and datagrams on port with a name, and counts nothing else.
func (c *cluster) serve(n *netns.NS, port uint16, name string) {
	addr := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	l, err := n.ListenTCP(c.t.Context(), addr, netns.SocketOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	u, err := n.ListenUDP(c.t.Context(), addr, netns.SocketOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.AcceptTCP()
			if err != nil {
				return
			}
			from := in.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			fmt.Fprintf(in, "%s saw %s", name, from)
			in.Close()
		}
	})
	wg.Go(func() {
		buf := make([]byte, 16)
		for {
			_, from, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort([]byte(name), from)
		}
	})
	c.t.Cleanup(func() {
		l.Close()
		u.Close()
		wg.Wait()
	})
}

func get(t *testing.T, from *netns.NS, to netip.AddrPort) (string, error) {
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	conn, err := from.DialTCP(ctx, to, netns.SocketOptions{})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	return string(b), err
}

func (c *cluster) expect(from *netns.NS, to netip.AddrPort, want string) {
	c.t.Helper()
	if got, err := get(c.t, from, to); err != nil || got != want {
		c.t.Errorf("%s: answer %q, %v; want %q", to, got, err, want)
	}
}

func TestRoutes(t *testing.T) {
	c := newCluster(t)
	c.serve(c.pod(1, 0), 8080, "pod")
	c.serve(c.outside, 80, "outside")
	for _, six := range []bool{false, true} {
		to := netip.AddrPortFrom(podAddr(1, 0, six), 8080)
		c.expect(c.pod(0, 0), to, "pod saw "+podAddr(0, 0, six).String())
		c.expect(c.pod(1, 1), to, "pod saw "+podAddr(1, 1, six).String())
		host := node1.Addresses[0]
		if six {
			host = node1.Addresses[1]
		}
		c.expect(c.nodes[0], to, "pod saw "+host.String())
	}
	for i, a := range outside.Addresses {
		c.expect(c.pod(0, 1), netip.AddrPortFrom(a, 80), "outside saw "+podAddr(0, 1, i == 1).String())
	}
	for _, nobody := range []string{"203.0.113.1:80", "[2001:db8::1]:80"} {
		if got, err := get(t, c.pod(0, 0), netip.MustParseAddrPort(nobody)); !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("%s: %q, %v; the underlay must lead nowhere", nobody, got, err)
		}
	}
}

// TestMasquerade: who is outside the cluster sees the node, and can answer without a way to pods; pods see each other as they are.
func TestMasquerade(t *testing.T) {
	c := newCluster(t)
	c.serve(c.pod(1, 0), 8080, "pod")
	c.serve(c.outside, 80, "outside")
	c.config[0].ClusterSubnets = prefixes("10.244.0.0/16", "fd00:10:244::/56")
	c.apply()
	for i, six := range []bool{false, true} {
		c.expect(c.pod(0, 0), netip.AddrPortFrom(outside.Addresses[i], 80), "outside saw "+node1.Addresses[i].String())
		c.expect(c.pod(1, 0), netip.AddrPortFrom(outside.Addresses[i], 80), "outside saw "+podAddr(1, 0, six).String())
		c.expect(c.pod(0, 0), netip.AddrPortFrom(podAddr(1, 0, six), 8080), "pod saw "+podAddr(0, 0, six).String())
	}
}

func cart(name string, pods ...[2]int) nodenet.Service {
	s := nodenet.Service{
		Name: name, VIPs: addrs("10.96.0.7", "fd00:10:96::7", "203.0.113.9"),
		Ports: []nodenet.ServicePort{{Port: 80}, {Port: 80, Protocol: nodenet.UDP}},
	}
	for i := range s.Ports {
		for _, p := range pods {
			for _, six := range []bool{false, true} {
				s.Ports[i].Endpoints = append(s.Ports[i].Endpoints, netip.AddrPortFrom(podAddr(p[0], p[1], six), 8080))
			}
		}
	}
	return s
}

func vips(s nodenet.Service) []netip.AddrPort {
	var out []netip.AddrPort
	for _, v := range s.VIPs {
		out = append(out, netip.AddrPortFrom(v, 80))
	}
	return out
}

func TestVirtualAddresses(t *testing.T) {
	s := cart("shop/cart", [2]int{0, 0}, [2]int{1, 0})
	c := newCluster(t, s)
	c.serve(c.pod(0, 0), 8080, "near")
	c.serve(c.pod(1, 0), 8080, "far")
	for name, from := range map[string]*netns.NS{"pod": c.pod(0, 1), "node": c.nodes[0], "pod that is an endpoint": c.pod(0, 0)} {
		for _, vip := range vips(s) {
			seen := map[string]bool{}
			for range 60 {
				got, err := get(t, from, vip)
				if err != nil {
					t.Fatalf("%s to %s: %v", name, vip, err)
				}
				seen[got[:4]] = true
			}
			if !seen["near"] || !seen["far "] {
				t.Errorf("%s to %s: of two endpoints only %v answered", name, vip, seen)
			}
		}
	}
}

// TestHairpin calls a service from its only endpoint.
func TestHairpin(t *testing.T) {
	s := cart("shop/cart", [2]int{0, 0})
	c := newCluster(t, s)
	c.serve(c.pod(0, 0), 8080, "self")
	for _, vip := range vips(s) {
		gateway := "10.244.0.1"
		if vip.Addr().Is6() {
			gateway = "fd00:10:244::1"
		}
		c.expect(c.pod(0, 0), vip, "self saw "+gateway)
		source := podAddr(1, 1, vip.Addr().Is6())
		c.expect(c.pod(1, 1), vip, "self saw "+source.String())
	}
}

func TestUDP(t *testing.T) {
	s := cart("shop/cart", [2]int{1, 0})
	c := newCluster(t, s)
	c.serve(c.pod(1, 0), 8080, "far")
	for _, vip := range vips(s) {
		source := netip.AddrPortFrom(podAddr(0, 1, vip.Addr().Is6()), 0)
		u, err := c.pod(0, 1).ListenUDP(t.Context(), source, netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		if _, err := u.WriteToUDPAddrPort([]byte("?"), vip); err != nil {
			t.Fatal(err)
		}
		u.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 16)
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != "far" || from != vip {
			t.Errorf("%s: %q from %s, %v", vip, buf[:n], from, err)
		}
	}
}

// TestUDPClientFollowsEndpoints asks from one port before and after the endpoint changed.
func TestUDPClientFollowsEndpoints(t *testing.T) {
	before, after := cart("shop/cart", [2]int{0, 0}), cart("shop/cart", [2]int{1, 0})
	c := newCluster(t, before)
	c.serve(c.pod(0, 0), 8080, "before")
	c.serve(c.pod(1, 0), 8080, "after")
	ask := func(u *net.UDPConn, vip netip.AddrPort, want string) {
		if _, err := u.WriteToUDPAddrPort([]byte("?"), vip); err != nil {
			t.Fatal(err)
		}
		u.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 16)
		if n, err := u.Read(buf); err != nil || string(buf[:n]) != want {
			t.Errorf("%s: %q, %v; want %q", vip, buf[:n], err, want)
		}
	}
	for _, vip := range vips(before) {
		c.apply(before)
		u, err := c.pod(0, 1).ListenUDP(t.Context(), netip.AddrPortFrom(podAddr(0, 1, vip.Addr().Is6()), 0), netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		ask(u, vip, "before")
		ask(u, vip, "before")
		c.apply(after)
		ask(u, vip, "after")
	}
}

func TestRefusals(t *testing.T) {
	c := newCluster(t, cart("shop/empty"))
	for name, from := range map[string]*netns.NS{"pod": c.pod(0, 0), "node": c.nodes[0]} {
		for _, to := range []string{
			"10.96.0.7:80", "[fd00:10:96::7]:80", "203.0.113.9:80", // no endpoints
			"10.96.200.1:80", "[fd00:10:96::99]:80", "10.96.0.7:81", // no service
		} {
			start := time.Now()
			got, err := get(t, from, netip.MustParseAddrPort(to))
			if !errors.Is(err, unix.ECONNREFUSED) || time.Since(start) > 500*time.Millisecond {
				t.Errorf("%s to %s: %q, %v after %v; want a refusal at once", name, to, got, err, time.Since(start))
			}
		}
	}
}

// TestEndpointsChangeUnderLoad swaps a service's endpoint while callers go on.
func TestEndpointsChangeUnderLoad(t *testing.T) {
	before, after := cart("shop/cart", [2]int{0, 0}), cart("shop/cart", [2]int{1, 0})
	c := newCluster(t, before)
	c.serve(c.pod(0, 0), 8080, "before")
	c.serve(c.pod(1, 0), 8080, "after")
	var wg sync.WaitGroup
	var stop atomic.Bool
	var calls atomic.Int64
	for _, vip := range vips(before) {
		wg.Go(func() {
			for !stop.Load() {
				if _, err := get(t, c.pod(0, 1), vip); err != nil {
					t.Errorf("%s: %v", vip, err)
				}
				calls.Add(1)
			}
		})
	}
	for range 8 {
		c.apply(after)
		c.apply(before)
	}
	c.apply(after)
	stop.Store(true)
	wg.Wait()
	if calls.Load() < 20 {
		t.Errorf("only %d calls while the endpoints changed", calls.Load())
	}
	for _, vip := range vips(after) {
		c.expect(c.pod(0, 1), vip, "after saw "+podAddr(0, 1, vip.Addr().Is6()).String())
	}
}

func TestCut(t *testing.T) {
	c := newCluster(t)
	c.serve(c.pod(1, 0), 8080, "far")
	for i, peer := range []string{"node2", "node1"} {
		c.config[i].Cut = []string{peer}
	}
	c.apply()
	for _, six := range []bool{false, true} {
		to := netip.AddrPortFrom(podAddr(1, 0, six), 8080)
		ctx, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if conn, err := c.pod(0, 0).DialTCP(ctx, to, netns.SocketOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s over a cut link: %v, %v", to, conn, err)
		}
		stop()
		c.expect(c.pod(1, 1), to, "far saw "+podAddr(1, 1, six).String())
	}
	for i := range c.config {
		c.config[i].Cut = nil
	}
	c.apply()
	for _, six := range []bool{false, true} {
		c.expect(c.pod(0, 0), netip.AddrPortFrom(podAddr(1, 0, six), 8080), "far saw "+podAddr(0, 0, six).String())
	}
}
