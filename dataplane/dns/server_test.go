// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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

// newRig starts the server, and an upstream that handle plays, until the test ends.
func newRig(t *testing.T, handle dns.HandlerFunc, change func(*Config, *fakeMesh, *fakeTransport)) *rig {
	t.Helper()
	upstream := serveUpstream(t, handle)
	r := &rig{t: t,
		mesh:      &fakeMesh{names: sampleMesh(), self: pod("shop", "web"), wait: make(chan struct{})},
		transport: &fakeTransport{upstream: upstream, origin: netip.MustParseAddrPort("10.96.0.10:53")}}
	cfg := Config{Zone: zone, Mesh: r.mesh, Transport: r.transport, Attempt: 200 * time.Millisecond,
		Observe: func(e Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
		},
		Log: slog.New(slog.NewTextHandler(&r.log, nil))}
	if change != nil {
		change(&cfg, r.mesh, r.transport)
	}
	r.server = New(cfg)
	ctx, cut := context.WithCancel(context.Background())
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
	g.Go(func() { r.server.ServePackets(ctx, c) })
	g.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.Go(func() {
				defer conn.Close()
				r.server.ServeConn(ctx, conn, r.transport.origin, quit)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		c.Close()
		close(quit)
		cut()
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
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			_ = s.ShutdownContext(ctx)
		})
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
	c := dns.Client{Net: network, Timeout: 3 * time.Second, UDPSize: dns.MaxMsgSize}
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
	for deadline := time.Now().Add(3 * time.Second); ; {
		r.mu.Lock()
		events := slices.Clone(r.events)
		r.mu.Unlock()
		if len(events) >= n {
			return events
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%d events, want %d", len(events), n)
		}
		time.Sleep(time.Millisecond)
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

func TestMeshNamesAreAnsweredHereAndOthersByTheirServer(t *testing.T) {
	r := newRig(t, zoneOf("alias.shop.svc.cluster.local. 5 IN CNAME host.example.org.", "host.example.org. 5 IN A 192.0.2.1",
		`cart.shop.svc.cluster.local. 5 IN TXT "note"`, "_http._tcp.db.shop.svc.cluster.local. 5 IN SRV 0 1 80 db-0.db.shop.svc.cluster.local."), nil)
	for _, network := range []string{"udp", "tcp"} {
		for _, c := range []struct {
			name    string
			kind    uint16
			rcode   int
			want    string
			forward bool
		}{
			{"Cart", dns.TypeA, dns.RcodeSuccess, "10.96.0.1", false},
			{"ledger.plain", dns.TypeAAAA, dns.RcodeSuccess, "", false},
			{"host.example.org", dns.TypeA, dns.RcodeSuccess, "192.0.2.1", true},
			{"alias.shop.svc.cluster.local", dns.TypeCNAME, dns.RcodeSuccess, "host.example.org.", true},
			{"missing.shop.svc.cluster.local", dns.TypeA, dns.RcodeNameError, "", true},
			{"cart.shop.svc.cluster.local", dns.TypeTXT, dns.RcodeSuccess, `"note"`, true},
			{"_http._tcp.db.shop.svc.cluster.local", dns.TypeSRV, dns.RcodeSuccess, "0 1 80 db-0.db.shop.svc.cluster.local.", true},
			{"api.example.com", dns.TypeMX, dns.RcodeSuccess, "", true}, // denied by the server, but the mesh knows the name
			{"other.example.com", dns.TypeMX, dns.RcodeNameError, "", true},
		} {
			r.mu.Lock()
			r.events = nil
			r.mu.Unlock()
			m := r.must(network, new(dns.Msg).SetQuestion(dns.Fqdn(c.name), c.kind))
			if m.Rcode != c.rcode || records(m) != c.want || !m.RecursionAvailable {
				t.Errorf("%s %s: got %v", network, c.name, m)
			}
			e := r.seen(1)[0]
			if e.Forwarded != c.forward || e.TCP != (network == "tcp") || e.Name != dns.Fqdn(c.name) || e.Rcode != c.rcode {
				t.Errorf("%s %s: event %+v", network, c.name, e)
			}
			if c.forward && e.Upstream != r.transport.origin {
				t.Errorf("%s %s: asked %s", network, c.name, e.Upstream)
			}
		}
	}
}

func TestEDNSAndSizes(t *testing.T) {
	var large []string
	for i := range 100 {
		large = append(large, fmt.Sprintf("large.example.org. 5 IN A 192.0.2.%d", i))
	}
	r := newRig(t, zoneOf(large...), func(_ *Config, m *fakeMesh, _ *fakeTransport) {
		n := m.names.(*fakeNames)
		var pods []*mesh.Workload
		for i := range 100 {
			pods = append(pods, pod("shop", fmt.Sprintf("m-%d", i), fmt.Sprintf("10.1.0.%d", i)))
		}
		n.endpoint(n.add(service("shop", "many.shop.svc.cluster.local")), pods...)
	})
	for _, name := range []string{"many", "large.example.org"} {
		for _, c := range []struct {
			network string
			payload uint16 // 0: no EDNS
			whole   bool
			most    int
		}{{"udp", 0, false, 512}, {"udp", 512, false, 512}, {"udp", 1232, false, 1232}, {"udp", 4096, true, 4096}, {"tcp", 0, true, 65535}} {
			q := question4(name)
			if c.payload > 0 {
				q.SetEdns0(c.payload, true)
			}
			m := r.must(c.network, q)
			m.Compress = true // to measure what was sent
			if m.Truncated == c.whole || c.whole && len(m.Answer) != 100 || m.Len() > c.most {
				t.Errorf("%s, %+v: truncated %v, %d answers, %d bytes", name, c, m.Truncated, len(m.Answer), m.Len())
			}
			opt := m.IsEdns0()
			if (opt != nil) != (c.payload > 0) || opt != nil && !opt.Do() {
				t.Errorf("%s, %+v: EDNS %v", name, c, opt)
			}
		}
	}
	q := question4("cart")
	q.SetEdns0(1232, false)
	q.IsEdns0().SetVersion(1)
	if m := r.must("udp", q); m.Rcode != dns.RcodeBadVers {
		t.Errorf("EDNS version 1: got %v", m)
	}
}

// An answer that its server cut although the client takes more is fetched by TCP for it.
func TestAnswerCutByItsServerIsFetchedWhole(t *testing.T) {
	r := newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		for i := range 40 {
			rr, _ := dns.NewRR(fmt.Sprintf("%s 5 IN A 192.0.2.%d", q.Question[0].Name, i))
			m.Answer = append(m.Answer, rr)
		}
		if w.LocalAddr().Network() == "udp" {
			m.Truncate(512)
		}
		_ = w.WriteMsg(m)
	}, nil)
	q := question4("stingy.example.org")
	q.SetEdns0(4096, false)
	if m := r.must("udp", q); m.Truncated || len(m.Answer) != 40 {
		t.Errorf("got %d answers, truncated %v", len(m.Answer), m.Truncated)
	}
	if m := r.must("udp", question4("stingy.example.org")); !m.Truncated {
		t.Error("control: a client without EDNS got more than 512 bytes")
	}
}

// Other operations than QUERY reach their server byte by byte, signature and all (istio/istio#55962).
func TestUpdatesPassUntouched(t *testing.T) {
	got := make(chan []byte, 1)
	r := newRig(t, zoneOf(), nil)
	server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	r.transport.move(server.LocalAddr().(*net.UDPAddr).AddrPort())
	go func() {
		b := make([]byte, 4096)
		n, from, err := server.ReadFromUDP(b)
		if err != nil {
			return
		}
		got <- slices.Clone(b[:n])
		m := new(dns.Msg)
		m.Id, m.Opcode, m.Response, m.Rcode = uint16(b[0])<<8|uint16(b[1]), dns.OpcodeUpdate, true, dns.RcodeRefused
		out, _ := m.Pack()
		_, _ = server.WriteToUDP(out, from)
	}()
	q := new(dns.Msg).SetUpdate("example.org.")
	rr, _ := dns.NewRR("new.example.org. 5 IN A 192.0.2.7")
	q.Insert([]dns.RR{rr})
	want, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp", r.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(want); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 512)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	var m dns.Msg
	if err := m.Unpack(b[:n]); err != nil || m.Id != q.Id || m.Opcode != dns.OpcodeUpdate || m.Rcode != dns.RcodeRefused {
		t.Errorf("the server's refusal became %v, %v", &m, err)
	}
	if sent := <-got; !bytes.Equal(sent, want) {
		t.Errorf("the server saw\n%x, want\n%x", sent, want)
	}
}

func TestUpstreamDown(t *testing.T) {
	r := newRig(t, zoneOf(), nil)
	closed, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	r.transport.move(closed.LocalAddr().(*net.UDPAddr).AddrPort())
	closed.Close()
	for _, network := range []string{"udp", "tcp"} {
		q := question4("example.org")
		q.SetEdns0(1232, false)
		start := time.Now()
		m := r.must(network, q)
		if m.Rcode != dns.RcodeServerFailure || time.Since(start) > 150*time.Millisecond {
			t.Errorf("%s: got %v after %s", network, m, time.Since(start))
		}
		if opt := m.IsEdns0(); opt == nil || len(opt.Option) != 1 || opt.Option[0].(*dns.EDNS0_EDE).InfoCode != dns.ExtendedErrorCodeNetworkError {
			t.Errorf("%s: no reason in %v", network, m)
		}
		if m := r.must(network, question4("cart")); records(m) != "10.96.0.1" {
			t.Errorf("%s: the mesh's own names must still be answered: %v", network, m)
		}
	}
	if e := r.seen(4); e[0].Err == nil || e[1].Err != nil {
		t.Errorf("events %+v", e)
	}
}

// A server that never answers takes one query's time and nobody else's.
func TestSlowUpstreamBlocksNobody(t *testing.T) {
	release := make(chan struct{})
	answered := zoneOf("quick.example.org. 5 IN A 192.0.2.1")
	r := newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if strings.HasPrefix(q.Question[0].Name, "slow") {
			<-release
			return
		}
		answered(w, q)
	}, nil)
	defer close(release)
	for _, network := range []string{"udp", "tcp"} {
		slow := make(chan *dns.Msg, 50)
		for i := range 50 {
			go func() {
				m, _ := r.ask(network, question4(fmt.Sprintf("slow%d.example.org", i)))
				slow <- m
			}()
		}
		if m := r.must(network, question4("quick.example.org")); records(m) != "192.0.2.1" {
			t.Errorf("%s: got %v", network, m)
		}
		for range 50 {
			if m := <-slow; m == nil || m.Rcode != dns.RcodeServerFailure {
				t.Errorf("%s: a query without an answer ended as %v", network, m)
			}
		}
	}
}

func TestQueriesThatWaitAreBounded(t *testing.T) {
	var now, most atomic.Int32
	release := make(chan struct{})
	budget := NewBudget(10)
	r := newRig(t, func(dns.ResponseWriter, *dns.Msg) {
		most.Store(max(most.Load(), now.Add(1)))
		<-release
		now.Add(-1)
	}, func(c *Config, _ *fakeMesh, _ *fakeTransport) { c.Budget, c.Attempt = budget, time.Second })
	var g sync.WaitGroup
	var refused atomic.Int32
	start := time.Now()
	for i := range 40 {
		g.Go(func() {
			if m, err := r.ask("udp", question4(fmt.Sprintf("n%d.example.org", i))); err == nil && m.Rcode == dns.RcodeServerFailure &&
				time.Since(start) < 500*time.Millisecond {
				refused.Add(1)
			}
		})
	}
	r.seen(30)
	close(release)
	g.Wait()
	if refused.Load() != 30 || most.Load() > 10 {
		t.Errorf("%d were refused at once, want 30; %d waited, want 10 at most", refused.Load(), most.Load())
	}
	if budget.now.Load() != 0 {
		t.Errorf("%d of the budget were not given back", budget.now.Load())
	}
}

func TestForgedAnswersAreIgnored(t *testing.T) {
	r := newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
		for i, forge := range []func(*dns.Msg){
			func(m *dns.Msg) { m.Id++ },
			func(m *dns.Msg) { m.Question[0].Name = "other.example.org." },
			func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
			func(m *dns.Msg) { m.Response = false },
			func(m *dns.Msg) { m.Question = nil },
			func(*dns.Msg) {},
		} {
			m := new(dns.Msg).SetReply(q)
			rr, _ := dns.NewRR(fmt.Sprintf("%s 5 IN A 192.0.2.%d", q.Question[0].Name, i))
			m.Answer = []dns.RR{rr}
			forge(m)
			_ = w.WriteMsg(m)
		}
	}, nil)
	if m := r.must("udp", question4("example.org")); records(m) != "192.0.2.5" {
		t.Errorf("got %v, want the sixth answer, which alone is one", m)
	}
}

// Ids that we send cannot be foreseen, and the client's comes back.
func TestIDsAreOurOwn(t *testing.T) {
	var mu sync.Mutex
	ids := map[uint16]bool{}
	answered := zoneOf("example.org. 5 IN A 192.0.2.1")
	r := newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		ids[q.Id] = true
		mu.Unlock()
		answered(w, q)
	}, nil)
	for range 20 {
		q := question4("example.org")
		q.Id = 7
		r.must("udp", q)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < 15 {
		t.Errorf("20 queries had %d ids", len(ids))
	}
}

func TestDestination(t *testing.T) {
	own := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), mesh.PortDNS)
	fallback := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
	for _, c := range []struct {
		why      string
		origin   netip.AddrPort
		fallback []netip.AddrPort
		want     []netip.AddrPort
		rcode    int
	}{
		{"where the client sent it", netip.MustParseAddrPort("10.96.0.10:53"), fallback, []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}, dns.RcodeSuccess},
		{"not tracked", netip.AddrPort{}, fallback, fallback, dns.RcodeSuccess},
		{"sent to the proxy itself", own, fallback, fallback, dns.RcodeSuccess},
		{"nowhere", netip.AddrPort{}, nil, nil, dns.RcodeServerFailure},
	} {
		r := newRig(t, zoneOf("example.org. 5 IN A 192.0.2.1"), func(_ *Config, _ *fakeMesh, f *fakeTransport) { f.origin, f.fallback = c.origin, c.fallback })
		if m := r.must("udp", question4("example.org")); m.Rcode != c.rcode || !slices.Equal(r.transport.asked, c.want) {
			t.Errorf("%s: asked %v, want %v; %v", c.why, r.transport.asked, c.want, m)
		}
	}
}

func TestUnknownPodWaitsAndIsToldSo(t *testing.T) {
	r := newRig(t, zoneOf(), func(_ *Config, m *fakeMesh, _ *fakeTransport) { m.late, m.self = m.self, nil })
	early := make(chan *dns.Msg, 1)
	go func() {
		m, _ := r.ask("udp", question4("cart"))
		early <- m
	}()
	close(r.mesh.wait)
	if m := <-early; m == nil || records(m) != "10.96.0.1" {
		t.Errorf("a query that came before its pod was known: %v", m)
	}
	r = newRig(t, zoneOf(), func(_ *Config, m *fakeMesh, _ *fakeTransport) { m.self = nil })
	close(r.mesh.wait)
	if m := r.must("tcp", question4("cart")); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("a pod that stays unknown: %v", m)
	}
}

// The upstream sends every query here again, as a resolver does whose own upstream leads back to it.
func TestLoops(t *testing.T) {
	for _, c := range []struct {
		why    string
		strips bool // the resolver does not pass EDNS options on
		most   int32
	}{{"a resolver that forwards as it is asked", false, suspicious}, {"one that asks anew", true, tooMany}} {
		t.Run(c.why, func(t *testing.T) {
			var r *rig
			var rounds atomic.Int32
			ready := make(chan struct{})
			r = newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
				<-ready
				rounds.Add(1)
				again := q.Copy()
				if c.strips {
					again.Extra = nil
				}
				again.Id = dns.Id()
				m, err := r.ask("udp", again)
				if err != nil {
					return
				}
				m.Id = q.Id
				_ = w.WriteMsg(m)
			}, func(c *Config, _ *fakeMesh, _ *fakeTransport) { c.Attempt = 2 * time.Second })
			close(ready)
			start := time.Now()
			if m := r.must("udp", question4("round.example.org")); m.Rcode != dns.RcodeServerFailure {
				t.Errorf("got %v", m)
			}
			if rounds.Load() > c.most || time.Since(start) > time.Second {
				t.Errorf("%d rounds in %s, want %d at most", rounds.Load(), time.Since(start), c.most)
			}
			if !strings.Contains(r.log.String(), "round in a circle") {
				t.Errorf("nobody was told: %s", r.log.String())
			}
			r.server.flights.mu.Lock()
			defer r.server.flights.mu.Unlock()
			if n := len(r.server.flights.equal); n != 0 {
				t.Errorf("%d queries are still taken to be on their way", n)
			}
		})
	}
}

// Many clients that ask the same at once are no loop, and do not see the mark.
func TestEqualQueriesAtOnceAreNoLoop(t *testing.T) {
	gather := make(chan struct{})
	var marked atomic.Int32
	answered := zoneOf("example.org. 5 IN A 192.0.2.1")
	r := newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if q.IsEdns0() != nil {
			marked.Add(1)
		}
		<-gather
		answered(w, q)
	}, func(c *Config, _ *fakeMesh, _ *fakeTransport) { c.Attempt = 2 * time.Second })
	var g sync.WaitGroup
	for range 30 {
		g.Go(func() {
			m, err := r.ask("udp", question4("example.org"))
			if err != nil || records(m) != "192.0.2.1" || m.IsEdns0() != nil {
				t.Errorf("got %v, %v", m, err)
			}
		})
	}
	for deadline := time.Now().Add(3 * time.Second); marked.Load() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	close(gather)
	g.Wait()
	if marked.Load() == 0 {
		t.Error("control: no query was marked")
	}
}

func TestWhatIsNoQueryIsDropped(t *testing.T) {
	r := newRig(t, zoneOf(), nil)
	c, err := net.Dial("udp", r.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	response := question4("cart")
	response.Response = true
	raw, _ := response.Pack()
	for _, b := range [][]byte{{}, []byte("short"), raw} {
		_, _ = c.Write(b)
	}
	broken := append([]byte{0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, 0xc0)
	_, _ = c.Write(broken)
	b := make([]byte, 512)
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	n, err := c.Read(b)
	if err != nil || n != headerBytes || b[1] != 9 || b[flagsLow]&0xf != dns.RcodeFormatError {
		t.Errorf("the first answer must be to the query that cannot be read: %x, %v", b[:n], err)
	}
}

func TestServePacketsEndsWithItsDeadline(t *testing.T) {
	r := newRig(t, zoneOf(), nil)
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client, err := net.Dial("udp", c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	raw, _ := question4("cart").Pack()
	if _, err := client.Write(raw); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	r.server.ServePackets(t.Context(), c)
	_ = client.SetReadDeadline(time.Now().Add(3 * time.Second))
	if n, err := client.Read(make([]byte, 512)); err != nil || n == 0 {
		t.Errorf("what was queued got no answer: %v", err)
	}
}

func TestResolve(t *testing.T) {
	var asked atomic.Int32
	answered := zoneOf("host.example.org. 30 IN A 192.0.2.1")
	r := newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		answered(w, q)
	}, func(_ *Config, _ *fakeMesh, f *fakeTransport) {
		f.fallback = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
	})
	for range 2 {
		if a, err := r.server.Resolve(t.Context(), "host.example.org", false); err != nil || a != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("got %s, %v", a, err)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("one question was asked %d times", asked.Load())
	}
	if a, err := r.server.Resolve(t.Context(), "host.example.org", true); !errors.Is(err, ErrNoAddress) {
		t.Errorf("the other family: got %s, %v", a, err)
	}
	if a, err := r.server.Resolve(t.Context(), "api.example.com", false); !errors.Is(err, ErrNoAddress) {
		t.Errorf("a name that only the mesh has: got %s, %v", a, err)
	}
}
