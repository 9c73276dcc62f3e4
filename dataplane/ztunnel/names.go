// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/dns"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// maxForwardedNames bounds the queries of all pods that wait for a resolver: each holds a socket.
const maxForwardedNames = 2048

// lastDatagrams is how long a DNS socket that has a successor is still read: what is queued there by then is little.
const lastDatagrams = 50 * time.Millisecond

// names are a proxy's DNS sockets; the zero value has none.
type names struct {
	server  *dns.Server
	packets []*net.UDPConn
}

// openNames opens port 15053 on the pod's loopback addresses, where the rules redirect queries to.
func (p *proxy) openNames(ctx context.Context) error {
	p.names.server = dns.New(dns.Config{
		Zone: dns.Zone{
			Domain: p.cfg.ClusterDomain, Network: p.cfg.Network, Preferred: p.cfg.DNS.PreferredNamespace, IPv6: p.cfg.IPv6,
		},
		Mesh: namesView{&p.local}, Transport: namesTransport{p}, Observe: p.observeName,
		Attempt: p.cfg.DNS.Attempt, Budget: p.dns, Log: p.log,
	})
	if p.cfg.DNS.Off {
		return nil // the server then only resolves endpoints
	}
	loopbacks := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	if p.cfg.IPv6 {
		loopbacks = append(loopbacks, netip.IPv6Loopback())
	}
	for _, a := range loopbacks {
		err := p.openNamesAt(ctx, netip.AddrPortFrom(a, mesh.PortDNS))
		if a.Is6() && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
			p.log.Info("no DNS over IPv6 in this pod: its loopback has no IPv6 address") // istio/istio#52487
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *proxy) openNamesAt(ctx context.Context, at netip.AddrPort) error {
	c, err := p.ns.ListenUDP(ctx, at, p.listenOptions())
	if err != nil {
		return err
	}
	p.names.packets = append(p.names.packets, c)
	l, err := p.ns.ListenTCP(ctx, at, p.listenOptions())
	if err != nil {
		return err
	}
	p.lanes = append(p.lanes, lane{l: l, serve: p.spawn(func(ctx context.Context, c *net.TCPConn, over func()) {
		p.serveNames(ctx, c)
		over()
	})})
	return nil
}

func (p *proxy) serveNames(ctx context.Context, c *net.TCPConn) {
	origin, err := capture.OriginalDestination(c)
	if err != nil {
		p.log.Debug("a query's destination is not known", "client", c.RemoteAddr(), "error", err)
	}
	p.work.add()
	p.names.server.ServeConn(ctx, c, origin, p.ended)
}

// serve answers datagrams until end, and then what was begun.
func (n *names) serve(ctx context.Context) {
	var g sync.WaitGroup
	for _, c := range n.packets {
		g.Go(func() {
			defer c.Close()
			n.server.ServePackets(ctx, c)
		})
	}
	g.Wait()
}

// resolve finds the address of an endpoint that is known by its host name, of the family asked for if it has one. It is
// asked for in the pod's namespace, but never of the mesh, whose own address for that host led here.
func (n *names) resolve(ctx context.Context, up catalog.Upstream, v6 bool) (netip.AddrPort, error) {
	addr, err := n.server.Resolve(ctx, up.Hostname, v6)
	if errors.Is(err, dns.ErrNoAddress) {
		addr, err = n.server.Resolve(ctx, up.Hostname, !v6)
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("resolve the endpoint %s of service %s: %w", up.Hostname, up.Service.Key(), err)
	}
	return netip.AddrPortFrom(addr, up.Addr.Port()), nil
}

// end makes serve return: soon, and with nothing lost that a successor's socket can take, or at once.
func (n *names) end(gently bool) {
	if !gently {
		n.close()
		return
	}
	for _, c := range n.packets {
		if netns.StepAside(c) != nil || c.SetReadDeadline(time.Now().Add(lastDatagrams)) != nil {
			c.Close()
		}
	}
}

func (n *names) close() {
	for _, c := range n.packets {
		c.Close()
	}
}

// namesView is the mesh as the pod sees it.
type namesView struct{ local *local }

func (v namesView) Now() (dns.Names, *mesh.Workload) {
	s := v.local.store.Load()
	return s, v.local.in(s)
}

func (v namesView) Await(ctx context.Context) (dns.Names, *mesh.Workload, error) {
	s, w, err := v.local.await(ctx)
	return s, w, err
}

// namesTransport is the pod's network; its mark keeps what the proxy sends from being redirected to it.
type namesTransport struct{ p *proxy }

func (t namesTransport) Origin(client, local netip.AddrPort) (netip.AddrPort, error) {
	return t.p.ns.OriginalDestinationUDP(client, local)
}

func (t namesTransport) DialUDP(ctx context.Context, to netip.AddrPort) (*net.UDPConn, error) {
	return t.p.ns.DialUDP(ctx, to, netns.SocketOptions{Mark: t.p.cfg.Mark})
}

func (t namesTransport) DialTCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	return t.p.ns.DialTCP(ctx, to, netns.SocketOptions{Mark: t.p.cfg.Mark})
}

func (t namesTransport) Fallback() []netip.AddrPort { return dns.Resolvers(t.p.cfg.DNS.ResolvConf) }

// observeName counts a query and, if asked to, logs it.
func (p *proxy) observeName(e dns.Event) {
	p.work.add()
	protocol := "udp"
	if e.TCP {
		protocol = "tcp"
	}
	var src telemetry.Peer
	if e.Self != nil {
		src.CanonicalName, src.CanonicalRevision = e.Self.CanonicalName, e.Self.CanonicalRevision
	}
	p.metrics.DNSRequest(e.Type, protocol, &src)
	if e.Forwarded {
		p.metrics.DNSForwarded(e.Type, protocol, &src, e.Took, e.Err)
	}
	if p.cfg.Level.Level() > slog.LevelDebug {
		return
	}
	result := "answered"
	switch {
	case e.Err != nil:
		result = "failed"
	case e.Forwarded:
		result = "forwarded"
	}
	attrs := []any{"query", e.Type, "domain", e.Name, "protocol", protocol, "result", result, "rcode", e.Rcode, "answers", e.Answers}
	if e.Forwarded {
		attrs = append(attrs, "upstream", e.Upstream.String(), "took", e.Took.String())
	}
	if e.Err != nil {
		attrs = append(attrs, "error", e.Err)
	}
	p.log.Debug("dns", attrs...)
}
