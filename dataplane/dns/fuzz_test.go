// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// offline is a network that leads nowhere.
type offline struct{}

var errOffline = errors.New("offline")

func (offline) Origin(_, _ netip.AddrPort) (netip.AddrPort, error) {
	return netip.MustParseAddrPort("192.0.2.53:53"), nil
}
func (offline) DialUDP(context.Context, netip.AddrPort) (*net.UDPConn, error) { return nil, errOffline }
func (offline) DialTCP(context.Context, netip.AddrPort) (*net.TCPConn, error) { return nil, errOffline }
func (offline) Fallback() []netip.AddrPort                                    { return nil }

// FuzzQuery gives the server any message: whatever it answers must be an answer to it, that fits, and reads back the same.
func FuzzQuery(f *testing.F) {
	for _, name := range []string{"cart.", "db.", "x.wild.example.com.", "cart.shop.svc.cluster.local.shop.svc.cluster.local.", "."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeANY} {
			q := new(dns.Msg).SetQuestion(name, kind)
			raw, _ := q.Pack()
			f.Add(raw, false)
			q.SetEdns0(600, true)
			raw, _ = q.Pack()
			f.Add(raw, true)
		}
	}
	raw, _ := new(dns.Msg).SetUpdate("example.org.").Pack()
	f.Add(raw, false)
	f.Add([]byte{0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12}, false)
	s := New(Config{Zone: zone, Mesh: &fakeMesh{names: sampleMesh(), self: pod("shop", "web")}, Transport: offline{}})
	f.Fuzz(func(t *testing.T, raw []byte, tcp bool) {
		if len(raw) > dns.MaxMsgSize {
			return
		}
		q := query{raw: raw, tcp: tcp}
		answer, done := s.quick(&q, make([]byte, 512))
		if !done {
			answer = s.slow(t.Context(), &q)
		}
		if len(answer) == 0 {
			if len(raw) >= headerBytes && raw[flagsHigh]&bitQR == 0 {
				t.Fatalf("no answer to %x", raw)
			}
			return
		}
		checkAnswer(t, &q, raw, answer)
	})
}

func checkAnswer(t *testing.T, q *query, raw, answer []byte) {
	t.Helper()
	var m, again dns.Msg
	if err := m.Unpack(answer); err != nil {
		t.Fatalf("the answer %x cannot be read: %v", answer, err)
	}
	if answer[0] != raw[0] || answer[1] != raw[1] || !m.Response || m.Opcode != int(raw[flagsHigh]>>3&0xf) {
		t.Fatalf("%v does not answer %x", &m, raw)
	}
	if q.msg != nil && len(q.msg.Question) == 1 {
		if len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.msg.Question[0].Name) || m.Question[0].Qtype != q.msg.Question[0].Qtype {
			t.Fatalf("%v has another question than %v", &m, q.msg)
		}
		if len(answer) > limit(q.msg, q.tcp) {
			t.Fatalf("%d bytes, the client takes %d", len(answer), limit(q.msg, q.tcp))
		}
	}
	m.Compress = true
	packed, err := m.Pack()
	if err != nil {
		t.Fatalf("the answer cannot be written again: %v", err)
	}
	if err := again.Unpack(packed); err != nil || again.String() != m.String() {
		t.Fatalf("read, written and read again it is %v, was %v (%v)", &again, &m, err)
	}
}

// FuzzUpstreamAnswer gives a query any answer of an upstream: what is taken for one, and made fit for the client, must be one.
func FuzzUpstreamAnswer(f *testing.F) {
	m := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("host.example.org.", dns.TypeA))
	rr, _ := dns.NewRR("host.example.org. 5 IN A 192.0.2.1")
	m.Answer, m.Id = []dns.RR{rr}, 7
	raw, _ := m.Pack()
	f.Add(raw, uint16(7))
	m.Rcode, m.Answer = dns.RcodeNameError, nil
	raw, _ = m.Pack()
	f.Add(raw, uint16(7))
	f.Add(append(raw, make([]byte, 600)...), uint16(7))
	ask := new(dns.Msg).SetQuestion("host.example.org.", dns.TypeA)
	ask.Id = 4711
	wire, _ := ask.Pack()
	f.Fuzz(func(t *testing.T, answer []byte, id uint16) {
		if len(answer) > dns.MaxMsgSize {
			return
		}
		q := &query{raw: wire}
		if done, _ := q.parse(); done {
			t.Fatal("the query itself is sound")
		}
		if !q.answers(answer, id) {
			return
		}
		q.event.Known = len(answer)%2 == 0
		out := q.restore(unmark(q, append([]byte(nil), answer...)))
		if len(out) > limit(q.msg, false) || out[0] != wire[0] || out[1] != wire[1] || out[flagsHigh]&bitQR == 0 {
			t.Fatalf("%x became %x", answer, out)
		}
	})
}

// BenchmarkAnswer is one query for a service from its bytes to those of the answer, without the sockets.
func BenchmarkAnswer(b *testing.B) {
	s := New(Config{Zone: zone, Mesh: &fakeMesh{names: sampleMesh(), self: pod("shop", "web")}, Transport: offline{}})
	for _, c := range []struct{ name, ask string }{
		{"service", "cart.shop.svc.cluster.local."}, {"search", "api.example.com.shop.svc.cluster.local."}, {"wildcard", "x.wild.example.com."},
	} {
		b.Run(c.name, func(b *testing.B) {
			q := new(dns.Msg).SetQuestion(c.ask, dns.TypeA)
			q.SetEdns0(1232, false)
			raw, err := q.Pack()
			if err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, 1232)
			b.ReportAllocs()
			for b.Loop() {
				q := query{raw: raw}
				if out, done := s.quick(&q, buf); !done || len(out) == 0 {
					b.Fatal("no answer")
				}
			}
		})
	}
}
