// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"

	"github.com/ambientlab/ambientlab/dataplane/authz"
	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/relay"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// headerNetwork is sent by a gateway: the network that the client is on (A1.3).
const headerNetwork = "x-forwarded-network"

// startHBONE hands a connection to the HBONE server, whose Shutdown ends it: that knows how to say goodbye, the end of a
// context does not.
func (p *proxy) startHBONE(ctx context.Context, c *net.TCPConn) {
	p.conns.Add(1)
	p.server.Start(context.WithoutCancel(ctx), c, p.conns.Done) // failures reach handshakeFailed, or the streams' handlers
}

// serverTLS presents the pod's certificate, once it is known who the pod is.
func (p *proxy) serverTLS(ctx context.Context) (*tls.Config, error) {
	_, self, err := p.local.await(ctx)
	if err != nil {
		return nil, err
	}
	id := p.local.identity(self)
	cert, err := p.certs.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	cfg := identity.RefuseRevoked(identity.ServerTLS(cert, id.TrustDomain), cert, p.revoked.Load())
	cfg.KeyLogWriter = p.cfg.KeyLog
	return cfg, nil
}

// handshakeFailed logs a connection that never became HTTP/2. Connections that only look whether the port is open do not count.
func (p *proxy) handshakeFailed(remote, local netip.AddrPort, err error) {
	if errors.Is(err, io.EOF) || relay.Normal(err) {
		p.log.Debug("connection to the tunnel port ended without a handshake", "source", remote, "error", err)
		return
	}
	f := p.begin(telemetry.Inbound, unmap(remote))
	f.rec.Dst.Addr = unmap(local)
	flag := telemetry.FlagTLS
	if unavailable := (*identity.UnavailableError)(nil); errors.As(err, &unavailable) {
		flag = telemetry.FlagIdentity
	}
	if revocation(err) {
		flag = telemetry.FlagRevoked
	}
	f.fail(flag, err)
}

// admission is what a request that may go on is about.
type admission struct {
	snap   *catalog.Snapshot
	self   *mesh.Workload
	client mesh.Identity
	target netip.AddrPort // of the application
}

// serveTunnel answers one CONNECT to the pod (A1.3): 200 once the application's connection stands, else the reason.
func (p *proxy) serveTunnel(ctx context.Context, in *hbone.Inbound) {
	in.Remote, in.Local = unmap(in.Remote), unmap(in.Local)
	f := p.begin(telemetry.Inbound, in.Remote)
	f.rec.Dst.Addr = in.Local
	trace, err := telemetry.ParseTraceparent(in.Get(telemetry.HeaderTraceparent))
	if err != nil { // none, or none that can be told from others
		trace = telemetry.NewTraceparent()
	}
	f.rec.TraceID = trace.TraceID()
	a, status, err := p.admit(ctx, in)
	if err != nil {
		f.fail(telemetry.FlagConnect, err)
		in.Refuse(status)
		return
	}
	p.describe(f, in, a)
	ctx, cut := context.WithCancelCause(ctx)
	f.live = live{
		inbound: true, hbone: true, start: f.rec.Start, src: in.Remote, originalDst: f.rec.Service, actualDst: a.target, cut: cut, peer: in.TLS,
		judge: authz.Connection{Source: a.client, SrcIP: in.Remote.Addr(), Dst: a.target},
	}
	p.tracker.add(&f.live)
	if err := p.checkRevoked(in.TLS); err != nil { // since the handshake
		in.Refuse(refusal(f.reject(ctx, telemetry.FlagRevoked, err)))
		return
	}
	if err := p.authorize(f, a.self); err != nil {
		in.Refuse(refusal(f.reject(ctx, telemetry.FlagDeny, err)))
		return
	}
	to, err := dialApp(ctx, p, in.Remote.Addr(), a.target, p.ns.DialFile)
	if err != nil {
		in.Refuse(refusal(f.reject(ctx, telemetry.FlagConnect, err)))
		return
	}
	f.rec.Upstream = unmap(netns.Local(to))
	var answer []hbone.Header
	if p.cfg.ResponseBaggage {
		answer = []hbone.Header{{Name: telemetry.HeaderBaggage, Value: telemetry.BaggageOf(a.self).String()}}
	}
	f.carry(ctx, in.Bytes, func(done func(relay.Result)) { in.AcceptThen(ctx, to, done, answer...) })
}

// admit checks everything about a request but policy, and finds where in the pod it goes. With an error comes the status
// to answer.
func (p *proxy) admit(ctx context.Context, in *hbone.Inbound) (admission, int, error) {
	if in.Method != http.MethodConnect {
		return admission{}, http.StatusBadRequest, fmt.Errorf("method %q is not CONNECT", in.Method)
	}
	to, err := parseAuthority(in.Authority)
	if err != nil {
		return admission{}, http.StatusBadRequest, err
	}
	client, err := identity.PeerIdentity(in.TLS)
	if err != nil { // the handshake has checked it
		return admission{}, http.StatusBadRequest, err
	}
	snap, self, err := p.local.await(ctx)
	if err != nil {
		return admission{}, http.StatusServiceUnavailable, err
	}
	switch {
	case self.ApplicationTunnel != nil:
		return admission{}, http.StatusServiceUnavailable, errApplicationTunnel
	case to.host == "" && to.ip != in.Local.Addr():
		return admission{}, http.StatusBadRequest, fmt.Errorf("authority %s is not the address %s that was connected to", to.ip, in.Local.Addr())
	case to.host != "":
		if to.port, err = hostPort(snap, self, to.host, to.port); err != nil {
			return admission{}, http.StatusServiceUnavailable, err
		}
	}
	if mesh.IllegalPort(to.port) {
		return admission{}, http.StatusServiceUnavailable, errSelfCall
	}
	if !owns(self, in.Local.Addr()) {
		return admission{}, http.StatusBadRequest, errNotOwn
	}
	return admission{snap, self, client, netip.AddrPortFrom(in.Local.Addr(), to.port)}, http.StatusOK, nil
}

// owns reports whether addr is one of the pod's, as far as the catalog knows them. A packet that the pod itself has marked
// like an answer of its application's is delivered to the pod whatever its destination: the proxy must not carry it there.
func owns(self *mesh.Workload, addr netip.Addr) bool {
	return len(self.Addresses) == 0 || slices.Contains(self.Addresses, addr)
}

// hostPort is where self serves a port of the service called host.
func hostPort(s *catalog.Snapshot, self *mesh.Workload, host string, port uint16) (uint16, error) {
	svc := s.ServiceOfHost(self, host)
	if svc == nil {
		return 0, fmt.Errorf("%s is no endpoint of a service called %q", self.UID, host)
	}
	target, ok := catalog.TargetPort(svc, self, port)
	if !ok {
		return 0, fmt.Errorf("service %s has no port %d here", svc.Key(), port)
	}
	return target, nil
}

// describe notes the ends of a tunnel. A gateway's client is on another network, where its address says nothing here: then
// its baggage is all there is, and good enough for telemetry.
func (p *proxy) describe(f *flow, in *hbone.Inbound, a admission) {
	_, host, err := telemetry.ParseForwarded(in.Get(telemetry.HeaderForwarded))
	if err != nil {
		host = ""
	}
	f.arriving(a.snap, a.self, a.client, a.target, host)
	f.rec.HBONEAddr = a.target
	if network := in.Get(headerNetwork); network != "" && network != p.cfg.Network {
		f.rec.Src = telemetry.ParseBaggage(in.Get(telemetry.HeaderBaggage)).Peer(in.Remote, a.client)
	}
}

// authorize judges f by what policy says now. The connection is listed already, so that a policy that changes from here
// on reaches it too.
func (p *proxy) authorize(f *flow, self *mesh.Workload) error {
	snap := p.catalog.Load()
	if now := p.local.in(snap); now != nil {
		self = now
	}
	d := p.policies.of(snap, self).Decide(f.live.judge)
	f.rec.Policy = d.Policy()
	if p.cfg.LogPolicies {
		p.log.Info("connection judged", "source", f.live.src, "identity", f.live.judge.Source, "destination", f.live.judge.Dst,
			"allowed", d.Allowed, "policy", d.Policy(), "reason", d.Reason)
	}
	for _, name := range d.DryRun {
		p.log.Info("dry-run policy matches", "policy", name, "source", f.live.src, "destination", f.live.judge.Dst)
	}
	if d.Allowed {
		return nil
	}
	return &policyError{decision: d}
}

// Where the source ports of connections to applications come from. A client's connection to an application is redirected here, and
// to connection tracking one from here with the client's own address and port is the same connection: it never arrives,
// or ends the client's. Few clients' kernels choose these ports, which are beyond Linux's default. A pod that was given
// another range keeps to it: it may be meant as a limit.
const (
	defaultFirstPort, defaultLastPort = 32768, 60999

	firstSourcePort = defaultLastPort + 1
	sourcePorts     = 1<<16 - firstSourcePort
	sourcePortTries = 3
)

// sourcePortTries is how often to try a port of those before the kernel chooses.
func (p *proxy) sourcePortTries() int {
	first, last, err := p.ns.LocalPorts()
	if err != nil {
		p.log.Warn("a connection to the application may be taken for one of its client's", "err", err)
	}
	if first != defaultFirstPort || last != defaultLastPort {
		return 0
	}
	return sourcePortTries
}

// dialApp connects by dial to the application from the client's own address, unless that is the application's or the
// application is the ztunnel (A1.9).
func dialApp[C any](ctx context.Context, p *proxy, client netip.Addr, to netip.AddrPort,
	dial func(context.Context, netip.AddrPort, netns.SocketOptions) (C, error),
) (C, error) {
	o := p.dialOptions()
	if !p.keepSource || p.own || client == to.Addr() || client.Is4() != to.Addr().Is4() || client.IsLoopback() {
		return dial(ctx, to, o)
	}
	o.Transparent, o.Freebind = true, true
	for range p.portTries() {
		o.Source = netip.AddrPortFrom(client, uint16(firstSourcePort+rand.IntN(sourcePorts)))
		c, err := dial(ctx, to, o)
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return c, err
		}
	}
	// Otherwise, or where many are taken, the kernel finds a free one among those that it chooses from.
	o.Source, o.BindAddrNoPort = netip.AddrPortFrom(client, 0), true
	return dial(ctx, to, o)
}
