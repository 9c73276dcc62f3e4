// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

func material(t *testing.T, id string) Material {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(7), URIs: []*url.URL{uri}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return Material{Cert: encode("CERTIFICATE", der), Key: encode("PRIVATE KEY", raw)}
}

func free(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestBothEnds(t *testing.T) {
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	o := Order{Material: material(t, "spiffe://td/ns/a/sa/b"), Address: free(t), App: app.Addr().(*net.TCPAddr).AddrPort()}
	ctx, stop := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Serve(ctx, o, func() { close(ready) }) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	<-ready
	for name, m := range map[string]Material{"with a certificate": material(t, "spiffe://td/ns/a/sa/c"), "without": {}} {
		got, err := Call(t.Context(), Order{Material: m, Address: o.Address})
		if err != nil || got.Status != 200 || got.Server != "spiffe://td/ns/a/sa/b" || got.Serial != "7" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if got, err := Call(t.Context(), Order{Address: free(t)}); err != nil || got.Status != 0 || got.Error == "" {
		t.Errorf("control: nobody listens: %+v, %v", got, err)
	}
}

func TestOrders(t *testing.T) {
	for text, want := range map[string]string{"": "EOF", "{}": "no address", `{"address":"x"}`: "read order", `{"address":"127.0.0.1:1"}`: ""} {
		_, err := Read(strings.NewReader(text))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := Call(t.Context(), Order{Material: Material{Cert: "x"}, Address: netip.MustParseAddrPort("127.0.0.1:1")}); err == nil {
		t.Error("called with a certificate that is none")
	}
}
