// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/identity/fakeca"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func TestAuthorityOutlivesARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "ca")
	first, err := LoadOrCreateAuthority(dir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreateAuthority(dir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.RootsPEM(), second.RootsPEM()) {
		t.Error("another root after a restart")
	}
	c := sign(t, second, id("shop", "web"), time.Hour)
	if err := verifyChain(pool(first), []*x509.Certificate{c.Leaf}, x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("%d files, want key and bundle alone", len(entries))
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, authorityKeyFile): 0o600, filepath.Join(dir, authorityBundleFile): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want mode %#o", path, info, err, want)
		}
	}
}

func TestAuthorityRefusesWhatItCannotTrust(t *testing.T) {
	other := newAuthority(t)
	write := func(name string, data []byte) func(dir string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), data, 0o600) }
	}
	for _, tc := range []struct {
		name  string
		spoil func(dir string) error
		want  string // part of the error; "" is recovery
	}{
		{"open directory", func(dir string) error { return os.Chmod(dir, 0o750) }, "chmod 700"},
		{"open key", func(dir string) error { return os.Chmod(filepath.Join(dir, authorityKeyFile), 0o640) }, "chmod 600"},
		{"open bundle", func(dir string) error { return os.Chmod(filepath.Join(dir, authorityBundleFile), 0o644) }, "chmod 600"},
		{"lost key", func(dir string) error { return os.Remove(filepath.Join(dir, authorityKeyFile)) }, "restore the key"},
		{"lost bundle", func(dir string) error { return os.Remove(filepath.Join(dir, authorityBundleFile)) }, ""},
		{"foreign bundle", write(authorityBundleFile, other.RootsPEM()), "does not belong"},
		{"empty bundle", write(authorityBundleFile, nil), "no certificate"},
		{"broken bundle", write(authorityBundleFile, []byte("x")), "not PEM"},
		{"broken key", write(authorityKeyFile, []byte("x")), "not PEM"},
		{"key is a directory", func(dir string) error {
			path := filepath.Join(dir, authorityKeyFile)
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Mkdir(path, 0o700)
		}, "is a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			if _, err := LoadOrCreateAuthority(dir, "cluster.local"); err != nil {
				t.Fatal(err)
			}
			if err := tc.spoil(dir); err != nil {
				t.Fatal(err)
			}
			_, err := LoadOrCreateAuthority(dir, "cluster.local")
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestBundleMayHoldFurtherRoots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := LoadOrCreateAuthority(dir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	bundle := append(a.RootsPEM(), newAuthority(t).RootsPEM()...)
	if err := os.WriteFile(filepath.Join(dir, authorityBundleFile), bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	if a, err = LoadOrCreateAuthority(dir, "cluster.local"); err != nil {
		t.Fatal(err)
	}
	if c := sign(t, a, id("shop", "web"), time.Hour); len(c.RootCerts) != 2 || len(c.TLS.Certificate) != 1 {
		t.Errorf("%d roots, %d to send", len(c.RootCerts), len(c.TLS.Certificate))
	}
}

func TestSignedCertificate(t *testing.T) {
	a := newAuthority(t)
	who := id("shop", "web")
	before := time.Now()
	c := sign(t, a, who, time.Hour)
	if c.Leaf.Subject.String() != "" || len(c.Leaf.DNSNames) != 0 || c.Leaf.IsCA {
		t.Errorf("subject %q, names %v, CA %v", c.Leaf.Subject, c.Leaf.DNSNames, c.Leaf.IsCA)
	}
	if d := c.Leaf.NotAfter.Sub(before); d < time.Hour-time.Second || d > time.Hour+time.Minute {
		t.Errorf("valid for %v", d)
	}
	if c := sign(t, a, who, 2*rootValidity); c.Leaf.NotAfter.After(a.load().issuer.NotAfter) {
		t.Error("outlives its root")
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	a := newAuthority(t)
	who := id("shop", "web")
	request := func(curve elliptic.Curve, t2 *x509.CertificateRequest) []byte {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, t2, key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	foreign, _ := url.Parse("spiffe://cluster.local/ns/shop/sa/cart")
	plain := request(elliptic.P256(), &x509.CertificateRequest{})
	broken := bytes.Clone(plain)
	broken[len(broken)/2] ^= 1
	for _, tc := range []struct {
		name string
		csr  []byte
		who  mesh.Identity
		ttl  time.Duration
		want string
	}{
		{"no name is fine", plain, who, time.Hour, ""},
		{"no PEM", []byte("x"), who, time.Hour, "not a PEM"},
		{"altered", broken, who, time.Hour, "request"},
		{"another identity", request(elliptic.P256(), &x509.CertificateRequest{URIs: []*url.URL{foreign}}), who, time.Hour, "asks for"},
		{"a host name", request(elliptic.P256(), &x509.CertificateRequest{DNSNames: []string{"istiod.istio-system.svc"}}), who, time.Hour, "no URI"},
		{"a weak key", request(elliptic.P224(), &x509.CertificateRequest{}), who, time.Hour, "256 bits"},
		{"another trust domain", plain, mesh.Identity{TrustDomain: "far", Namespace: "shop", ServiceAccount: "web"}, time.Hour, "trust domain"},
		{"no lifetime", plain, who, 0, "lifetime"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := a.SignCSR(tc.csr, tc.who, tc.ttl)
			if tc.want == "" && err != nil {
				t.Fatal(err)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestServingCertificate(t *testing.T) {
	a := newAuthority(t)
	c, err := a.ServingCertificate([]string{"istiod.istio-system.svc", "10.96.0.5"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"istiod.istio-system.svc", "10.96.0.5"} {
		if _, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool(a)}); err != nil {
			t.Error(err)
		}
	}
}

func TestTestRootIsLongLived(t *testing.T) {
	roots, err := parseCertificates(fakeca.RootPEM)
	if err != nil || len(roots) != 1 {
		t.Fatal(roots, err)
	}
	if left := time.Until(roots[0].NotAfter); left < 10*365*24*time.Hour {
		t.Errorf("ends in %v", left)
	}
	one, two := NewFakeCA(), NewFakeCA()
	a, err := one.Sign(t.Context(), id("shop", "web"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := two.Sign(t.Context(), mesh.Identity{TrustDomain: "far", Namespace: "shop", ServiceAccount: "cart"})
	if err != nil {
		t.Fatal(err)
	}
	if err := verifyChain(a.Roots, []*x509.Certificate{b.Leaf}, x509.ExtKeyUsageServerAuth); err != nil {
		t.Error("two processes do not trust each other:", err)
	}
}

func FuzzParseRequest(f *testing.F) {
	_, csr, err := newRequest(id("shop", "web"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Fuzz(func(t *testing.T, data []byte) {
		if csr, err := parseRequest(data, id("shop", "web")); err == nil && len(csr.DNSNames) > 0 {
			t.Fatal("accepted a host name")
		}
	})
}
