// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/relay"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// serveOutbound carries one connection that the pod opened, by the tree of A1.4.
func (p *proxy) serveOutbound(ctx context.Context, c *os.File, client netip.AddrPort, over func()) {
	f := p.begin(telemetry.Outbound, client)
	f.client, f.end = c, over
	dst, err := capture.OriginalDestination(c)
	if err != nil {
		f.fail(telemetry.FlagConnect, err)
		return
	}
	f.rec.Dst.Addr = dst
	if mesh.IllegalPort(dst.Port()) && outboundSelfCall(dst, unmap(netns.Local(c))) {
		f.fail(telemetry.FlagConnect, errSelfCall)
		return
	}
	snap, self, err := p.local.await(ctx)
	if err != nil {
		f.fail(telemetry.FlagConnect, err)
		return
	}
	f.rec.Src = plainPeer(self, f.rec.Src.Addr)
	up, err := snap.Resolve(catalog.Request{Source: self, Dst: dst, Network: p.cfg.Network})
	f.toward(up)
	if err == nil && up.Hostname != "" {
		src := telemetry.PeerOf(self, f.rec.Src.Addr)
		p.metrics.OnDemandDNS(&src, up.Hostname)
		up.Addr, err = p.names.resolve(ctx, up, dst.Addr().Is6())
	}
	if err != nil {
		f.fail(telemetry.FlagConnect, err)
		return
	}
	ctx, cut := context.WithCancelCause(ctx)
	f.live = live{start: f.rec.Start, src: f.rec.Src.Addr, originalDst: dst.String(), actualDst: up.Addr, cut: cut}
	if up.Kind == catalog.KindWorkload && up.Tunnel == mesh.TunnelHBONE {
		p.outboundTunnel(ctx, c, f, self, up)
		return
	}
	p.outboundPlain(ctx, c, f, up)
}

// outboundSelfCall recognises a pod that calls its own proxy: by loopback, or at an address that was not redirected, so
// that the original destination is where the connection arrived.
func outboundSelfCall(dst, local netip.AddrPort) bool {
	return mesh.IllegalPort(dst.Port()) && (dst.Addr().IsLoopback() || dst == local)
}

// outboundTunnel asks the destination's proxy for a tunnel. Nothing is read from c before it has said 200.
func (p *proxy) outboundTunnel(ctx context.Context, c *os.File, f *flow, self *mesh.Workload, up catalog.Upstream) {
	host := ""
	if up.Service != nil {
		host = up.Service.Hostname
	}
	trace := telemetry.NewTraceparent()
	key := p.poolKey(self, f.rec.Src.Addr.Addr(), up)
	f.rec.TraceID, f.rec.HBONEAddr, f.rec.Dst.Addr = trace.TraceID(), up.Addr, key.Addr
	f.live.hbone, f.live.actualDst = true, key.Addr
	stream, err := p.pool.Open(ctx, key, &hbone.Request{
		Authority: up.Addr.String(),
		Header:    []hbone.Header{{Name: telemetry.HeaderBaggage, Value: telemetry.BaggageOf(self).String()}},
		Once: []hbone.Header{
			{Name: telemetry.HeaderForwarded, Value: telemetry.FormatForwarded(f.rec.Src.Addr, host)},
			{Name: telemetry.HeaderTraceparent, Value: trace.String()},
		},
	})
	if err != nil {
		if refused := (*hbone.StatusError)(nil); errors.As(err, &refused) { // by a peer that had proved who it is
			f.secure(p.local.identity(self), up.Workload.Identity())
		}
		flag, err := tunnelError(err)
		_ = f.reject(ctx, flag, err)
		return
	}
	if peer, err := identity.PeerIdentity(stream.TLS()); err == nil {
		f.secure(p.local.identity(self), peer)
	}
	f.rec.Upstream, f.live.peer = stream.LocalAddr(), stream.TLS()
	p.tracker.add(&f.live)
	if err := p.checkRevoked(stream.TLS()); err != nil { // since the handshake
		f.live.cut(err)
	}
	f.client = nil // the tunnel closes it
	f.carry(ctx, stream.Bytes, func(done func(relay.Result)) { stream.RelayThen(ctx, c, done) })
}

// poolKey keeps apart what may not share a connection (A1.7).
func (p *proxy) poolKey(self *mesh.Workload, src netip.Addr, up catalog.Upstream) hbone.Key {
	sans := up.SANs()
	slices.Sort(sans)
	return hbone.Key{
		Source:       p.local.identity(self).String(),
		Destinations: strings.Join(slices.Compact(sans), " "),
		SourceIP:     src,
		Addr:         netip.AddrPortFrom(up.Addr.Addr(), mesh.PortHBONE),
	}
}

// outboundPlain connects from the pod's own address: to a workload without a proxy, or outside the mesh.
func (p *proxy) outboundPlain(ctx context.Context, file *os.File, f *flow, up catalog.Upstream) {
	f.rec.Dst.Addr = up.Addr
	c, err := p.dialOptions().AsTCP(file) // as the kernel copies between those
	if err != nil {
		_ = f.reject(ctx, telemetry.FlagConnect, err)
		return
	}
	f.client = c
	to, err := p.ns.DialTCP(ctx, up.Addr, p.dialOptions())
	if err != nil {
		_ = f.reject(ctx, telemetry.FlagConnect, err)
		return
	}
	f.rec.Upstream = localOf(to)
	p.tracker.add(&f.live)
	f.carry(ctx, copied(c, to), func(done func(relay.Result)) { done(relay.Copy(ctx, c, to)) })
}

// dialTunnel makes the TCP connection below a tunnel.
func (p *proxy) dialTunnel(ctx context.Context, k hbone.Key) (*net.TCPConn, error) {
	return p.ns.DialTCP(ctx, k.Addr, p.dialOptions())
}

// clientTLS presents the pod's certificate and expects one of the key's destinations.
func (p *proxy) clientTLS(ctx context.Context, k hbone.Key) (*tls.Config, error) {
	id, err := mesh.ParseIdentity(k.Source)
	if err != nil {
		return nil, err
	}
	cert, err := p.certs.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	cfg := identity.RefuseRevoked(identity.ClientTLSForSANs(cert, strings.Fields(k.Destinations)), cert, p.revoked.Load())
	cfg.KeyLogWriter = p.cfg.KeyLog
	return cfg, nil
}
