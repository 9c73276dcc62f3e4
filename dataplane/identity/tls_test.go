// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// handshake returns what both sides saw, and the error of each.
func handshake(t *testing.T, server, client *tls.Config) (ss, cs tls.ConnectionState, serr, cerr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			serr = err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		if serr = conn.Handshake(); serr == nil {
			ss = conn.ConnectionState()
			conn.Write([]byte{1})
		}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, client)
	if cerr = conn.Handshake(); cerr == nil {
		_, cerr = conn.Read(make([]byte, 1)) // a refusal of our certificate arrives after the handshake
	}
	cs = conn.ConnectionState()
	<-done
	return ss, cs, serr, cerr
}

func TestHandshakeBetweenWorkloads(t *testing.T) {
	a := newAuthority(t)
	web, cart := id("shop", "web"), id("shop", "cart")
	server := ServerTLS(sign(t, a, cart, time.Hour), "cluster.local")
	sni := "unset"
	server.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) { sni = h.ServerName; return nil, nil }
	client := ClientTLS(sign(t, a, web, time.Hour), []mesh.Identity{id("shop", "other"), cart})
	for range 2 { // twice: nothing is resumed
		ss, cs, serr, cerr := handshake(t, server, client)
		if serr != nil || cerr != nil {
			t.Fatalf("server %v, client %v", serr, cerr)
		}
		if got, _ := PeerIdentity(&ss); got != web {
			t.Errorf("server saw %s", got)
		}
		if got, _ := PeerIdentity(&cs); got != cart {
			t.Errorf("client saw %s", got)
		}
		if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "h2" || cs.DidResume || cs.CurveID != tls.X25519MLKEM768 {
			t.Errorf("version %x, protocol %q, resumed %v, curve %v", cs.Version, cs.NegotiatedProtocol, cs.DidResume, cs.CurveID)
		}
		if sni != "" {
			t.Errorf("client sent server name %q", sni)
		}
	}
}

func TestHandshakeRefusals(t *testing.T) {
	a, foreign := newAuthority(t), newAuthority(t)
	web, cart := id("shop", "web"), id("shop", "cart")
	far := mesh.Identity{TrustDomain: "far.local", Namespace: "shop", ServiceAccount: "web"}
	webCert, cartCert := sign(t, a, web, time.Hour), sign(t, a, cart, time.Hour)
	old := func(c *tls.Config) *tls.Config {
		c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		return c
	}
	bare := func(c *tls.Config) *tls.Config { c.Certificates = nil; return c }
	for _, tc := range []struct {
		name           string
		server, client *tls.Config
		serr, cerr     error // nil: any
	}{
		{"client of another root", ServerTLS(cartCert, "cluster.local"), ClientTLS(withRoots(sign(t, foreign, web, time.Hour), a), []mesh.Identity{cart}), ErrUntrusted, nil},
		{"client of another trust domain", ServerTLS(cartCert, "cluster.local"), ClientTLS(sign(t, a, far, time.Hour), []mesh.Identity{cart}), ErrTrustDomain, nil},
		{"client without certificate", ServerTLS(cartCert, "cluster.local"), bare(ClientTLS(webCert, []mesh.Identity{cart})), nil, nil},
		{"client of TLS 1.2", ServerTLS(cartCert, "cluster.local"), old(ClientTLS(webCert, []mesh.Identity{cart})), nil, nil},
		{"server of another root", ServerTLS(withRoots(sign(t, foreign, cart, time.Hour), a), "cluster.local"), ClientTLS(webCert, []mesh.Identity{cart}), nil, ErrUntrusted},
		{"server of another identity", ServerTLS(cartCert, "cluster.local"), ClientTLS(webCert, []mesh.Identity{web}), nil, ErrUnexpectedIdentity},
		{"nobody expected", ServerTLS(cartCert, "cluster.local"), ClientTLS(webCert, nil), nil, ErrUnexpectedIdentity},
		{"server's certificate expired", ServerTLS(expired(t, a, cart), "cluster.local"), ClientTLS(webCert, []mesh.Identity{cart}), nil, ErrUntrusted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, serr, cerr := handshake(t, tc.server, tc.client)
			if serr == nil && cerr == nil {
				t.Fatal("accepted")
			}
			if tc.serr != nil && !errors.Is(serr, tc.serr) {
				t.Errorf("server: %v, want %v", serr, tc.serr)
			}
			if tc.cerr != nil && !errors.Is(cerr, tc.cerr) {
				t.Errorf("client: %v, want %v", cerr, tc.cerr)
			}
		})
	}
}

func expired(t *testing.T, a *Authority, who mesh.Identity) *Certificate {
	t.Helper()
	c := *sign(t, a, who, time.Hour)
	der, err := a.load().issue(&x509.Certificate{URIs: c.Leaf.URIs}, c.Leaf.PublicKey, -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c.TLS.Certificate, c.TLS.Leaf = [][]byte{der}, nil
	return &c
}

// withRoots is c, trusting a.
func withRoots(c *Certificate, a *Authority) *Certificate {
	out := *c
	out.Roots = pool(a)
	return &out
}

func TestServiceNamesAreAccepted(t *testing.T) {
	a := newAuthority(t)
	server := ServerTLS(sign(t, a, id("shop", "cart"), time.Hour), "cluster.local")
	client := ClientTLSForSANs(sign(t, a, id("shop", "web"), time.Hour), []string{"spiffe://cluster.local/ns/shop/sa/cart"})
	if _, _, serr, cerr := handshake(t, server, client); serr != nil || cerr != nil {
		t.Fatalf("server %v, client %v", serr, cerr)
	}
}

func TestPeerIdentityNeedsACertificate(t *testing.T) {
	for _, cs := range []*tls.ConnectionState{nil, {}} {
		if _, err := PeerIdentity(cs); err == nil {
			t.Error("accepted")
		}
	}
}
