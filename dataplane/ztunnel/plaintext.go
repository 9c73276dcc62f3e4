// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"net"

	"github.com/ambientlab/ambientlab/dataplane/authz"
	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/relay"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// servePlaintext carries one connection that reached the pod outside a tunnel. Policy sees a client without identity.
func (p *proxy) servePlaintext(ctx context.Context, c *net.TCPConn, over func()) {
	src := remoteOf(c)
	f := p.begin(telemetry.Inbound, src)
	f.client, f.end = c, over
	dst, err := capture.OriginalDestination(c)
	if err != nil {
		f.fail(telemetry.FlagConnect, err)
		return
	}
	f.rec.Dst.Addr = dst
	if mesh.IllegalPort(dst.Port()) {
		f.fail(telemetry.FlagConnect, errSelfCall)
		return
	}
	snap, self, err := p.local.await(ctx)
	if err != nil {
		f.fail(telemetry.FlagConnect, err)
		return
	}
	if !owns(self, dst.Addr()) {
		f.fail(telemetry.FlagConnect, errNotOwn)
		return
	}
	f.arriving(snap, self, mesh.Identity{}, dst, "")
	ctx, cut := context.WithCancelCause(ctx)
	f.live = live{
		inbound: true, start: f.rec.Start, src: src, originalDst: f.rec.Service, actualDst: dst, cut: cut,
		judge: authz.Connection{SrcIP: src.Addr(), Dst: dst},
	}
	p.tracker.add(&f.live)
	if err := p.authorize(f, self); err != nil {
		_ = f.reject(ctx, telemetry.FlagDeny, err)
		return
	}
	to, err := dialApp(ctx, p, src.Addr(), dst, p.ns.DialTCP)
	if err != nil {
		_ = f.reject(ctx, telemetry.FlagConnect, err)
		return
	}
	f.rec.Upstream = localOf(to)
	f.carry(ctx, copied(c, to), func(done func(relay.Result)) { done(relay.Copy(ctx, c, to)) })
}
