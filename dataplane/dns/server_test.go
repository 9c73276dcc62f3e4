// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

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
	_ = c.SetReadDeadline(time.Now().Add(patience))
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
	_ = client.SetReadDeadline(time.Now().Add(patience))
	if n, err := client.Read(make([]byte, 512)); err != nil || n == 0 {
		t.Errorf("what was queued got no answer: %v", err)
	}
}
