// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

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
	_ = c.SetReadDeadline(time.Now().Add(patience))
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
	const attempt = 5 * time.Second
	r := newRig(t, zoneOf(), func(c *Config, _ *fakeMesh, _ *fakeTransport) { c.Attempt = attempt })
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
		if m.Rcode != dns.RcodeServerFailure || time.Since(start) > attempt {
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
	r := newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
		most.Store(max(most.Load(), now.Add(1)))
		<-release
		now.Add(-1)
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
	}, func(c *Config, _ *fakeMesh, _ *fakeTransport) { c.Budget, c.Attempt = budget, patience })
	var g sync.WaitGroup
	var refused atomic.Int32
	start := time.Now()
	for i := range 40 {
		g.Go(func() {
			if m, err := r.ask("udp", question4(fmt.Sprintf("n%d.example.org", i))); err == nil && m.Rcode == dns.RcodeServerFailure &&
				time.Since(start) < patience {
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
	for late := time.Now().Add(patience); budget.now.Load() != 0; runtime.Gosched() { // after the answer
		if time.Now().After(late) {
			t.Fatalf("%d of the budget were not given back", budget.now.Load())
		}
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
