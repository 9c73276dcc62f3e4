// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func testZone(t *testing.T) *Zone {
	t.Helper()
	app := map[string]string{"app": "a"}
	pods := []*corev1.Pod{
		newPod("db-0", "db-0", "db", app, true, "10.0.0.1", "fd00::1"),
		newPod("db-1", "", "", app, true, "10.0.0.2", "fd00::2"),
		newPod("db-2", "", "", app, false, "10.0.0.3", "fd00::3"),
	}
	ports := []corev1.ServicePort{{Name: "sql", Port: 5432, Protocol: corev1.ProtocolTCP}}
	return NewZone(objects(pods,
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.5", ClusterIPs: []string{"10.96.0.5", "fd00:96::5"}, Ports: ports,
		}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "four"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.6", Ports: ports}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: corev1.ServiceSpec{ClusterIP: "None", Selector: app, Ports: ports}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "empty"}, Spec: corev1.ServiceSpec{ClusterIP: "None"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "alias"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "web.ns.svc.cluster.local"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "out"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "www.example."}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "loop"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "loop.ns.svc.cluster.local"}},
	), "cluster.local", map[string][]netip.Addr{"api.test": {netip.MustParseAddr("203.0.113.1")}})
}

// The names are those of the DNS specification for Kubernetes.
func TestAnswer(t *testing.T) {
	z := testZone(t)
	const svc = ".ns.svc.cluster.local."
	for _, tt := range []struct {
		name  string
		qtype uint16
		rcode int
		want  []string
	}{
		{"web" + svc, dns.TypeA, dns.RcodeSuccess, []string{"web" + svc + " A 10.96.0.5"}},
		{"web" + svc, dns.TypeAAAA, dns.RcodeSuccess, []string{"web" + svc + " AAAA fd00:96::5"}},
		{"WEB.ns.SVC.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"WEB.ns.SVC.cluster.local. A 10.96.0.5"}},
		{"four" + svc, dns.TypeAAAA, dns.RcodeSuccess, nil},
		{"_sql._tcp.web" + svc, dns.TypeSRV, dns.RcodeSuccess, []string{"_sql._tcp.web" + svc + " SRV 0 100 5432 web" + svc}},
		{"db" + svc, dns.TypeA, dns.RcodeSuccess, []string{"db" + svc + " A 10.0.0.1", "db" + svc + " A 10.0.0.2"}},
		{"db-0.db" + svc, dns.TypeAAAA, dns.RcodeSuccess, []string{"db-0.db" + svc + " AAAA fd00::1"}},
		{"10-0-0-2.db" + svc, dns.TypeA, dns.RcodeSuccess, []string{"10-0-0-2.db" + svc + " A 10.0.0.2"}},
		{"_sql._tcp.db" + svc, dns.TypeSRV, dns.RcodeSuccess, []string{
			"_sql._tcp.db" + svc + " SRV 0 100 5432 10-0-0-2.db" + svc, "_sql._tcp.db" + svc + " SRV 0 100 5432 db-0.db" + svc,
			"_sql._tcp.db" + svc + " SRV 0 100 5432 fd00--2.db" + svc,
		}},
		{"empty" + svc, dns.TypeA, dns.RcodeSuccess, nil},
		{"alias" + svc, dns.TypeA, dns.RcodeSuccess, []string{"alias" + svc + " CNAME web" + svc, "web" + svc + " A 10.96.0.5"}},
		{"out" + svc, dns.TypeA, dns.RcodeSuccess, []string{"out" + svc + " CNAME www.example."}},
		{"loop" + svc, dns.TypeA, dns.RcodeServerFailure, nil},
		{"10-0-0-3.ns.pod.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10-0-0-3.ns.pod.cluster.local. A 10.0.0.3"}},
		{"5.0.96.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, []string{"5.0.96.10.in-addr.arpa. PTR web" + svc}},
		{"api.test.", dns.TypeA, dns.RcodeSuccess, []string{"api.test. A 203.0.113.1"}},
		{"ns.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, nil},
		{"none" + svc, dns.TypeA, dns.RcodeNameError, nil},
		{"web" + svc + "ns.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, nil},
		{"www.example.", dns.TypeA, dns.RcodeNameError, nil},
		{"web.", dns.TypeA, dns.RcodeNameError, nil},
	} {
		req := new(dns.Msg).SetQuestion(tt.name, tt.qtype)
		resp := z.Answer(req)
		if resp.Rcode != tt.rcode || resp.Id != req.Id || !resp.Authoritative {
			t.Errorf("%s: rcode %s, want %s", tt.name, dns.RcodeToString[resp.Rcode], dns.RcodeToString[tt.rcode])
		}
		if diff := cmp.Diff(tt.want, texts(resp.Answer)); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.name, dns.TypeToString[tt.qtype], diff)
		}
		if len(tt.want) == 0 && (len(resp.Ns) != 1 || resp.Ns[0].Header().Rrtype != dns.TypeSOA) {
			t.Errorf("%s: a denial without SOA: %v", tt.name, resp.Ns)
		}
	}
}

func texts(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		f := strings.Fields(rr.String())
		out = append(out, f[0]+" "+strings.Join(f[3:], " "))
	}
	slices.Sort(out)
	return out
}

func TestAnswerRefusesOddQueries(t *testing.T) {
	z := testZone(t)
	update := new(dns.Msg).SetUpdate("cluster.local.")
	two := new(dns.Msg).SetQuestion("a.", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	chaos := new(dns.Msg).SetQuestion("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	for want, req := range map[int]*dns.Msg{
		dns.RcodeNotImplemented: update, dns.RcodeFormatError: two, dns.RcodeRefused: chaos,
	} {
		if resp := z.Answer(req); resp.Rcode != want {
			t.Errorf("rcode %s, want %s", dns.RcodeToString[resp.Rcode], dns.RcodeToString[want])
		}
	}
}

func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	d := NewDNS(nil)
	done := make(chan error, 1)
	go func() { done <- d.Serve(ctx, []net.Listener{l}, []net.PacketConn{p}) }()

	ask := func(network string, addr net.Addr, name string) *dns.Msg {
		t.Helper()
		c := dns.Client{Net: network}
		resp, _, err := c.ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(name, dns.TypeA), addr.String())
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if resp := ask("udp", p.LocalAddr(), "web.ns.svc.cluster.local."); resp.Rcode != dns.RcodeNameError {
		t.Errorf("before Update: %s", resp)
	}
	many := map[string][]netip.Addr{}
	ip := netip.MustParseAddr("10.9.0.0")
	for range 100 {
		ip = ip.Next()
		many["many.test"] = append(many["many.test"], ip)
	}
	d.Update(NewZone(objects(nil), "cluster.local", many))
	if resp := ask("udp", p.LocalAddr(), "many.test."); !resp.Truncated || len(resp.Answer) == 0 {
		t.Errorf("a long answer over UDP: truncated %t, %d records", resp.Truncated, len(resp.Answer))
	}
	if resp := ask("tcp", l.Addr(), "many.test."); resp.Truncated || len(resp.Answer) != 100 {
		t.Errorf("a long answer over TCP: truncated %t, %d records", resp.Truncated, len(resp.Answer))
	}
	idle, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Close() }()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeEndsWithABrokenSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := NewDNS(nil).Serve(t.Context(), []net.Listener{l}, nil); err == nil {
		t.Error("Serve of a closed listener succeeded")
	}
}
