// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func TestCommandsRoundTrip(t *testing.T) {
	c := ConnectCommand{CertDir: "/tmp/c", Request: Request{
		To: "10.0.0.1:15008", Timeout: time.Second, Payload: []byte("x=y"),
		Fields: []Field{{":method", "CONNECT"}, {":authority", "u@10.0.0.1:80"}, {"baggage", "a=b,c=d"}},
	}}
	got, err := ParseConnect(c.Args(), io.Discard)
	if diff := cmp.Diff(c, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	s := SYN{Via: ViaRaw, To: netip.MustParseAddrPort("10.0.0.1:80"), Source: netip.MustParseAddr("169.254.7.127"), Wait: time.Second}
	gotSYN, err := ParseSYN(s.Args(), io.Discard)
	if diff := cmp.Diff(s, gotSYN, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, bad := range [][]string{{}, {"--cert", "x"}, {"--cert", "x", "--field", "novalue", "h:1"}, {"h:1"}} {
		if _, err := ParseConnect(bad, io.Discard); err == nil {
			t.Errorf("connect %v was accepted", bad)
		}
	}
	for _, bad := range [][]string{{}, {"nowhere"}, {"[::1]:80"}, {"--via", "pigeon", "10.0.0.1:80"}} {
		if _, err := ParseSYN(bad, io.Discard); err == nil {
			t.Errorf("syn %v was accepted", bad)
		}
	}
}

func TestSYN(t *testing.T) {
	s := SYN{To: netip.MustParseAddrPort("10.0.0.2:8080")}
	p := s.packet(netip.MustParseAddr("10.0.0.1"))
	if checksum(0, p[:ipHeader]) != 0 {
		t.Error("the IP header's checksum is wrong")
	}
	pseudo := append(append([]byte{}, p[12:ipHeader]...), 0, 6, 0, tcpHeader)
	if checksum(0, append(pseudo, p[ipHeader:]...)) != 0 {
		t.Error("the TCP checksum is wrong")
	}
	answer := func(flags byte) []byte {
		a := SYN{To: netip.MustParseAddrPort("10.0.0.1:61999")}.packet(netip.MustParseAddr("10.0.0.2"))
		binary.BigEndian.PutUint16(a[ipHeader:], 8080)
		a[ipHeader+13] = flags
		return a
	}
	for flags, want := range map[byte]string{flagSYN | flagACK: AnswerSYNACK, flagRST | flagACK: AnswerRST} {
		if r, ok := s.answers(answer(flags)); !ok || r.Answer != want || r.From.Port() != 8080 {
			t.Errorf("flags %d: %+v, %v", flags, r, ok)
		}
	}
	for name, not := range map[string][]byte{"its own SYN": p, "a plain ACK": answer(flagACK), "short": p[:30], "nothing": nil} {
		if r, ok := s.answers(not); ok {
			t.Errorf("%s was taken for an answer: %+v", name, r)
		}
	}
}

// A hand-made request reaches a stock HTTP/2 server as it was written, and its answer comes back whole.
func TestConnect(t *testing.T) {
	ca := identity.NewFakeCA()
	sign := func(sa string) *identity.Certificate {
		cert, err := ca.Sign(t.Context(), mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: sa})
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	server := sign("cart")
	l, err := tls.Listen("tcp", "127.0.0.1:0", identity.ServerTLS(server, "cluster.local"))
	if err != nil {
		t.Fatal(err)
	}
	stock := &http.Server{Handler: http.HandlerFunc(echo), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- stock.Serve(l) }()
	t.Cleanup(func() {
		_ = stock.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	client := identity.ClientTLS(sign("web"), []mesh.Identity{server.Identity})
	for authority, want := range map[string]int{"10.0.0.9:80": 200, "refused:1": 503} {
		a, err := Connect(t.Context(), client, Request{To: l.Addr().String(), Timeout: 5 * time.Second, Payload: []byte("ping"), Fields: []Field{
			{":method", "CONNECT"}, {":authority", authority}, {"baggage", "a=b"},
		}})
		if err != nil || a.Status != want || a.Peer != server.Identity.String() || a.Fields["x-baggage"] != "a=b" {
			t.Fatalf("%s: %+v, %v", authority, a, err)
		}
		if want == 200 && string(a.Payload) != "ping" {
			t.Errorf("payload %q", a.Payload)
		}
	}
}

// echo refuses one authority and sends back what it gets from any other.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("x-baggage", r.Header.Get("baggage"))
	if r.Host == "refused:1" {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	_, _ = io.Copy(w, r.Body)
}
