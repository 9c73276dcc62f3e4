// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// The cluster's DNS is on every node, at addresses that are the node's own, as a node-local cache would have them. They are
// the endpoints of service kube-dns, so that its virtual address is balanced like any other, and proxies know it too.
const (
	dnsPort    = 53
	dnsService = "kube-dns"
	dnsSpace   = "kube-system"
)

var dnsAddrs = []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fd00:169:254:20::10")}

// dnsSockets collects what the one server serves.
type dnsSockets struct {
	tcp []net.Listener
	udp []net.PacketConn
}

// openDNS makes the node's DNS addresses and the sockets on them.
func (s *site) openDNS(ctx context.Context, n *node) (dnsSockets, error) {
	var socks dnsSockets
	var addrs []netip.Addr
	for _, a := range dnsAddrs {
		if s.hasFamily(a) {
			addrs = append(addrs, a)
		}
	}
	if err := n.ns.Do(func() error { return addLoopback(addrs) }); err != nil {
		return socks, fmt.Errorf("open DNS on node %s: %w", n.name, err)
	}
	for _, a := range addrs {
		at := netip.AddrPortFrom(a, dnsPort)
		l, err := n.ns.ListenTCP(ctx, at, netns.SocketOptions{})
		if err != nil {
			return socks, fmt.Errorf("open DNS on node %s: %w", n.name, err)
		}
		socks.tcp = append(socks.tcp, l)
		c, err := n.ns.ListenUDP(ctx, at, netns.SocketOptions{})
		if err != nil {
			return socks, fmt.Errorf("open DNS on node %s: %w", n.name, err)
		}
		socks.udp = append(socks.udp, c)
	}
	return socks, nil
}

// addLoopback gives loopback further addresses; a link of their own would need a kernel with dummy links.
func addLoopback(addrs []netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback link: %w", err)
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD // to be bound to at once
		}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	return nil
}

// serveDNS serves until ctx ends.
func (s *site) serveDNS(ctx context.Context, socks dnsSockets) {
	if err := s.dns.Serve(ctx, socks.tcp, socks.udp); err != nil {
		s.log.Error("cluster DNS ended", "err", err)
	}
}

// dnsSlices are the endpoints of the cluster's DNS.
func (s *site) dnsSlices() []source.Object {
	var out []source.Object
	for _, a := range dnsAddrs {
		if !s.hasFamily(a) {
			continue
		}
		family := discoveryv1.AddressTypeIPv4
		if a.Is6() {
			family = discoveryv1.AddressTypeIPv6
		}
		slice := &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: dnsSpace, Name: dnsService + "-" + strings.ToLower(string(family)),
				Labels: map[string]string{discoveryv1.LabelServiceName: dnsService},
			},
			AddressType: family,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{a.String()}}},
		}
		port := int32(dnsPort)
		for _, p := range []struct {
			name  string
			proto corev1.Protocol
		}{{"dns", corev1.ProtocolUDP}, {"dns-tcp", corev1.ProtocolTCP}} {
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.name, Port: &port, Protocol: &p.proto})
		}
		out = append(out, slice)
	}
	return out
}
