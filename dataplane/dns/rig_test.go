// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// fakeMesh is the mesh of a pod that is known, or not yet.
type fakeMesh struct {
	names Names
	self  *mesh.Workload
	wait  chan struct{} // Await returns when it is closed
	late  *mesh.Workload
}

func (m *fakeMesh) Now() (Names, *mesh.Workload) { return m.names, m.self }

func (m *fakeMesh) Await(ctx context.Context) (Names, *mesh.Workload, error) {
	select {
	case <-m.wait:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	if m.late == nil {
		return nil, nil, errors.New("no such pod")
	}
	return m.names, m.late, nil
}

// fakeTransport is a network in which every destination is reached at upstream.
type fakeTransport struct {
	upstream netip.AddrPort
	origin   netip.AddrPort
	fallback []netip.AddrPort

	mu    sync.Mutex
	asked []netip.AddrPort
}

func (f *fakeTransport) Origin(_, _ netip.AddrPort) (netip.AddrPort, error) {
	if !f.origin.IsValid() {
		return netip.AddrPort{}, errors.New("not tracked")
	}
	return f.origin, nil
}

func (f *fakeTransport) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	f.mu.Lock()
	f.asked = append(f.asked, to)
	at := f.upstream
	f.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, network, at.String())
}

func (f *fakeTransport) move(upstream netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.upstream = upstream
}

func (f *fakeTransport) DialUDP(ctx context.Context, to netip.AddrPort) (*net.UDPConn, error) {
	c, err := f.dial(ctx, "udp", to)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func (f *fakeTransport) DialTCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := f.dial(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (f *fakeTransport) Fallback() []netip.AddrPort { return f.fallback }

// rig is a server at loopback sockets, with an upstream at others.
type rig struct {
	t         *testing.T
	server    *Server
	mesh      *fakeMesh
	transport *fakeTransport
	udp, tcp  string
	packets   *net.UDPConn
	log       logText

	mu     sync.Mutex
	events []Event
	noted  chan struct{} // there is another event
}

// logText is what has been logged so far.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// patience is more than anything takes that comes at all, on a busy machine too.
const patience = 20 * time.Second

// newRig starts the server, and an upstream that handle plays, until the test ends.
func newRig(t *testing.T, handle dns.HandlerFunc, change func(*Config, *fakeMesh, *fakeTransport)) *rig {
	t.Helper()
	upstream := serveUpstream(t, handle)
	r := &rig{t: t, noted: make(chan struct{}, 1),
		mesh:      &fakeMesh{names: sampleMesh(), self: pod("shop", "web"), wait: make(chan struct{})},
		transport: &fakeTransport{upstream: upstream, origin: netip.MustParseAddrPort("10.96.0.10:53")}}
	cfg := Config{Zone: zone, Mesh: r.mesh, Transport: r.transport, Attempt: 200 * time.Millisecond,
		Observe: func(e Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
			select {
			case r.noted <- struct{}{}:
			default:
			}
		},
		Log: slog.New(slog.NewTextHandler(&r.log, nil))}
	if change != nil {
		change(&cfg, r.mesh, r.transport)
	}
	r.server = New(cfg)
	quit := make(chan struct{})
	var g sync.WaitGroup
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.Go(func() { r.server.ServePackets(t.Context(), c) })
	g.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.Go(func() {
				defer conn.Close()
				r.server.ServeConn(t.Context(), conn, r.transport.origin, quit)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		c.Close()
		close(quit)
		g.Wait()
	})
	r.packets, r.udp, r.tcp = c, c.LocalAddr().String(), l.Addr().String()
	return r
}

func serveUpstream(t *testing.T, handle dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	t.Cleanup(g.Wait)
	for _, s := range []*dns.Server{{Listener: l}, {PacketConn: c}} {
		s.Handler = handle
		s.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		g.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.ShutdownContext(t.Context()) }) // which has ended: g waits
	}
	return at
}

// zoneOf answers as a cluster's DNS would: by name and type, with NXDOMAIN for all else.
func zoneOf(records ...string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		m.Rcode = dns.RcodeNameError
		for _, s := range records {
			rr, err := dns.NewRR(s)
			if err != nil {
				panic(err)
			}
			if !strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
				continue
			}
			m.Rcode = dns.RcodeSuccess
			if rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		if opt := q.IsEdns0(); opt != nil {
			m.SetEdns0(4096, opt.Do())
		}
		if w.LocalAddr().Network() == "udp" {
			size := dns.MinMsgSize
			if opt := q.IsEdns0(); opt != nil {
				size = int(opt.UDPSize())
			}
			m.Truncate(size)
		}
		_ = w.WriteMsg(m)
	}
}

func (r *rig) ask(network string, q *dns.Msg) (*dns.Msg, error) {
	at := r.udp
	if network == "tcp" {
		at = r.tcp
	}
	c := dns.Client{Net: network, Timeout: patience, UDPSize: dns.MaxMsgSize}
	m, _, err := c.Exchange(q, at)
	return m, err
}

func (r *rig) must(network string, q *dns.Msg) *dns.Msg {
	r.t.Helper()
	m, err := r.ask(network, q)
	if err != nil {
		r.t.Fatalf("%s %v: %v", network, q.Question, err)
	}
	if m.Id != q.Id || !slices.Equal(m.Question, q.Question) {
		r.t.Errorf("the answer %v is to another question than %v", m, q)
	}
	return m
}

// seen waits for n events and returns them.
func (r *rig) seen(n int) []Event {
	r.t.Helper()
	for late := time.After(patience); ; {
		r.mu.Lock()
		events := slices.Clone(r.events)
		r.mu.Unlock()
		if len(events) >= n {
			return events
		}
		select {
		case <-r.noted:
		case <-late:
			r.t.Fatalf("%d events, want %d", len(events), n)
		}
	}
}

func question4(name string) *dns.Msg { return new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA) }

func records(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(out, " ")
}
