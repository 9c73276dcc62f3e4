// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"strings"
	"testing"
	"time"
)

func pool(a *Authority) *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(a.RootsPEM())
	return p
}

func TestRequestNamesOnlyTheURI(t *testing.T) {
	_, csrPEM, err := newRequest(id("shop", "web"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(csrPEM)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != "spiffe://cluster.local/ns/shop/sa/web" {
		t.Errorf("URIs %v", csr.URIs)
	}
	if csr.Subject.String() != "" || csr.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("subject %q, key %v", csr.Subject, csr.PublicKeyAlgorithm)
	}
}

func TestAnswersOfAnAuthority(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	who := id("shop", "web")
	key, csr, err := newRequest(who)
	if err != nil {
		t.Fatal(err)
	}
	_, otherCSR, err := newRequest(who)
	if err != nil {
		t.Fatal(err)
	}
	answer := func(a *Authority, csr []byte) [][]byte {
		chain, err := a.SignCSR(csr, who, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return chain
	}
	good := answer(a, csr)
	// Another identity and a second URI, signed for the same key.
	parsed, _ := pem.Decode(csr)
	req, _ := x509.ParseCertificateRequest(parsed.Bytes)
	forge := func(uris ...string) [][]byte {
		c := &x509.Certificate{}
		for _, s := range uris {
			u, _ := url.Parse(s)
			c.URIs = append(c.URIs, u)
		}
		der, err := a.load().issue(c, req.PublicKey, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return [][]byte{encodeCertificate(der), good[1]}
	}
	for _, tc := range []struct {
		name  string
		chain [][]byte
		want  string // part of the error; "" is good
	}{
		{"leaf and root", good, ""},
		{"all in one element", [][]byte{bytes.Join(good, nil)}, ""},
		{"two roots", append(good[:2:2], other.RootsPEM()), ""},
		{"nothing", nil, "0 certificates"},
		{"leaf alone", good[:1], "1 certificates"},
		{"another root", [][]byte{good[0], other.RootsPEM()}, "trusted root"},
		{"another key", answer(a, otherCSR), "another key"},
		{"another identity", forge("spiffe://cluster.local/ns/shop/sa/cart"), "not for spiffe://cluster.local/ns/shop/sa/web"},
		{"a second URI", forge(who.String(), "spiffe://cluster.local/ns/shop/sa/cart"), "not for"},
		{"no PEM", [][]byte{[]byte("hello"), good[1]}, "1 certificates"},
		{"a key among them", append(good[:2:2], []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")), "PRIVATE KEY"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := newCertificate(who, key, tc.chain)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if c.Identity != who || len(c.TLS.Certificate) != 1 || len(c.Chain) != 0 || len(c.RootCerts) == 0 {
					t.Errorf("got %d certificates to send, %d between, %d roots", len(c.TLS.Certificate), len(c.Chain), len(c.RootCerts))
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func FuzzParseCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add(newAuthority(f).RootsPEM())
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := parseCertificates(data)
		if err != nil {
			return
		}
		var again bytes.Buffer
		for _, c := range certs {
			again.Write(encodeCertificate(c.Raw))
		}
		back, err := parseCertificates(again.Bytes())
		if err != nil || len(back) != len(certs) {
			t.Fatalf("%d certificates became %d: %v", len(certs), len(back), err)
		}
	})
}
