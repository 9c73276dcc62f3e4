// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/relay"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// flow is one connection from its arrival to its line in the access log. It ends with exactly one of fail, reject and
// carry, and belongs to the goroutine that serves the connection, until carry.
type flow struct {
	p    *proxy
	rec  telemetry.Record
	live live

	client client // that is refused by a reset, and closed at the end; nil inside a tunnel, where a status says it
	end    func() // if set, called at the end
}

// client is a connection that was accepted: a *net.TCPConn or an *os.File.
type client interface {
	syscall.Conn
	io.Closer
}

func (p *proxy) begin(d telemetry.Direction, src netip.AddrPort) *flow {
	p.work.add()
	f := &flow{p: p}
	f.rec.Start, f.rec.Direction, f.rec.Src.Addr = time.Now(), d, src
	return f
}

// secure notes the identities that both ends of a mutual TLS connection have proved.
func (f *flow) secure(src, dst mesh.Identity) {
	f.rec.Security, f.rec.Src.Identity, f.rec.Dst.Identity = telemetry.MutualTLS, src, dst
}

// toward notes where an outbound connection goes. Identities are noted once they are proven.
func (f *flow) toward(up catalog.Upstream) {
	f.rec.Dst = plainPeer(up.Workload, f.rec.Dst.Addr)
	f.rec.SetService(up.Service)
}

// plainPeer is a peer that has proved nothing.
func plainPeer(w *mesh.Workload, addr netip.AddrPort) telemetry.Peer {
	peer := telemetry.PeerOf(w, addr)
	peer.Identity = mesh.Identity{}
	return peer
}

// arriving notes the two ends of an inbound connection whose client proved to be id, or nobody.
func (f *flow) arriving(s *catalog.Snapshot, self *mesh.Workload, id mesh.Identity, app netip.AddrPort, host string) {
	src, dst := f.rec.Src.Addr, f.rec.Dst.Addr
	f.rec.Src = plainPeer(f.p.client(s, src.Addr(), id), src)
	f.rec.Dst = plainPeer(self, dst)
	if !id.IsZero() {
		f.rec.Src.Namespace = id.Namespace
		f.secure(id, f.p.local.identity(self))
	}
	f.rec.SetService(calledService(s, self, host, app.Port()))
}

// client is the workload at an address, unless the client has proved to be another: the address has changed hands then,
// or is a gateway's.
func (p *proxy) client(s *catalog.Snapshot, addr netip.Addr, id mesh.Identity) *mesh.Workload {
	w := s.WorkloadByAddr(p.cfg.Network, addr)
	if w == nil || (!id.IsZero() && w.Identity() != id) {
		return nil
	}
	return w
}

// calledService is the service that a client of self meant: the one that it names, if self belongs to it, else the first
// of self's that leads to the port.
func calledService(s *catalog.Snapshot, self *mesh.Workload, host string, port uint16) *mesh.Service {
	if host != "" {
		if svc := s.ServiceOfHost(self, host); svc != nil {
			return svc
		}
	}
	for _, m := range self.Services {
		svc := s.Service(m.Key)
		if svc == nil {
			continue
		}
		for _, p := range svc.Ports {
			if target, ok := catalog.TargetPort(svc, self, p.ServicePort); ok && target == port {
				return svc
			}
		}
	}
	return nil
}

// fail ends a connection of which too little is known to call it one.
func (f *flow) fail(flag string, err error) {
	f.rec.Flags, f.rec.Err = flag, err
	f.p.metrics.ConnFailed(&f.rec)
	f.p.access.Failed(&f.rec)
	f.refuse()
	f.over()
}

// over undoes what began with the connection.
func (f *flow) over() {
	f.p.tracker.remove(&f.live)
	if f.live.cut != nil {
		f.live.cut(nil)
	}
	if f.client != nil {
		_ = f.client.Close()
	}
	if f.end != nil {
		f.end()
	}
}

// refuse makes the client's connection end by a reset. It was accepted before its destination was tried, and an orderly end would say that
// there was nothing to send (istio/ztunnel#1483).
func (f *flow) refuse() {
	if f.client != nil {
		netns.ResetOnClose(f.client)
	}
}

// reject ends a connection whose ends are known but that was never established, and returns why: if the proxy itself cut ctx
// meanwhile, that.
func (f *flow) reject(ctx context.Context, flag string, err error) error {
	if cut := f.p.cutBy(ctx); cut != nil {
		err = cut
	}
	if denied := (*policyError)(nil); errors.As(err, &denied) {
		flag, f.rec.Policy = telemetry.FlagDeny, denied.decision.Policy()
	}
	if revocation(err) {
		flag = telemetry.FlagRevoked
	}
	f.rec.Flags, f.rec.Err = flag, err
	f.p.metrics.ConnFailed(&f.rec)
	f.p.access.Complete(&f.rec)
	f.refuse()
	f.over()
	return err
}

// carry counts and logs an established connection, which is listed, around move, which relays its bytes until the end of ctx
// and calls done then, perhaps after it has returned. moved is what it has moved so far, up as in its result.
func (f *flow) carry(ctx context.Context, moved func() (up, down uint64), move func(done func(relay.Result))) {
	m := f.p.metrics
	m.ConnOpened(&f.rec)
	m.SocketOpened(f.rec.Direction)
	f.p.access.Opened(&f.rec)
	f.p.tracker.measure(&f.live, &f.rec, func() (sent, received uint64) { return f.local(moved()) })
	move(func(res relay.Result) { f.carried(ctx, res) })
}

// carried is the rest of carry.
func (f *flow) carried(ctx context.Context, res relay.Result) {
	m := f.p.metrics
	f.p.work.add() // what it held becomes garbage now, perhaps hours after the last connection came
	f.p.tracker.measure(&f.live, nil, nil)
	f.rec.Err = res.Err
	if err := f.p.cutBy(ctx); err != nil {
		f.rec.Err = err
	}
	if denied := (*policyError)(nil); errors.As(f.rec.Err, &denied) {
		f.rec.Flags, f.rec.Policy = telemetry.FlagDeny, denied.decision.Policy()
	}
	if revocation(f.rec.Err) {
		f.rec.Flags = telemetry.FlagRevoked
	}
	f.rec.BytesSent, f.rec.BytesRecv = f.local(res.BytesUp, res.BytesDown)
	m.ConnClosed(&f.rec)
	m.SocketClosed(f.rec.Direction)
	f.p.access.Complete(&f.rec)
	f.over()
}

// local turns a relay's counts into the local workload's view.
func (f *flow) local(up, down uint64) (sent, received uint64) {
	if f.rec.Direction == telemetry.Inbound {
		return down, up
	}
	return up, down
}

// copied is what a plain relay between two connections has moved so far.
func copied(down, up *net.TCPConn) func() (bytesUp, bytesDown uint64) {
	return func() (uint64, uint64) { return netns.Sent(up), netns.Sent(down) }
}

// cutBy is why the proxy itself ended ctx; nil if it did not.
func (p *proxy) cutBy(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	cause := context.Cause(ctx)
	if denied := (*policyError)(nil); errors.As(cause, &denied) || revocation(cause) || errors.Is(cause, errDrained) || errors.Is(cause, errPodGone) {
		return cause
	}
	select {
	case <-p.expired: // a tunnel that the server cut on the proxy's behalf
		return p.cutReason()
	default:
		return nil
	}
}
