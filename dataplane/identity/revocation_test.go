// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// revoke makes s's list of certs, as DER.
func revoke(t testing.TB, s *signing, extra []pkix.Extension, certs ...*x509.Certificate) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour), ExtraExtensions: extra}
	for _, c := range certs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, s.issuer, s.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func crlPEM(ders ...[]byte) []byte {
	var b bytes.Buffer
	for _, d := range ders {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: d}))
	}
	return b.Bytes()
}

func mustParse(t testing.TB, data []byte) *Revocations {
	t.Helper()
	lists, err := ParseRevocationLists(data)
	if err != nil {
		t.Fatal(err)
	}
	return &Revocations{lists: lists}
}

func TestRevocationsJudgeWhomTheIssuerNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := LoadOrCreateAuthority(dir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	root := a.load()
	web, cart := sign(t, a, id("shop", "web"), time.Hour), sign(t, a, id("shop", "cart"), time.Hour)
	if err := NewIntermediate(t.Context(), Directory(dir), "cluster.local"); err != nil {
		t.Fatal(err)
	}
	mustReload(t, a)
	below := sign(t, a, id("shop", "below"), time.Hour)
	foreign := newAuthority(t).load() // its root has the same name
	for _, tc := range []struct {
		name    string
		lists   []byte
		cert    *Certificate
		revoked bool
	}{
		{"nobody's list", nil, web, false},
		{"named, as DER", revoke(t, root, nil, web.Leaf), web, true},
		{"named, as PEM", crlPEM(revoke(t, root, nil, web.Leaf)), web, true},
		{"named by the second list", crlPEM(revoke(t, foreign, nil), revoke(t, root, nil, web.Leaf)), web, true},
		{"not named", revoke(t, root, nil, web.Leaf), cart, false},
		{"named by one who did not issue it", revoke(t, foreign, nil, web.Leaf), web, false},
		{"its intermediate is named by the root", revoke(t, root, nil, below.Chain[0]), below, true},
		{"named by its intermediate", revoke(t, a.load(), nil, below.Leaf), below, true},
		{"named by the root, which did not issue it", revoke(t, root, nil, below.Leaf), below, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			roots := 0
			err := mustParse(t, tc.lists).Check(append([]*x509.Certificate{tc.cert.Leaf}, tc.cert.Chain...), func() []*x509.Certificate { roots++; return tc.cert.RootCerts })
			if got := errors.Is(err, ErrRevoked); got != tc.revoked || err != nil && !strings.Contains(err.Error(), "CERT_REVOKED") {
				t.Errorf("revoked %v (%v), want %v", got, err, tc.revoked)
			}
			if tc.lists == nil && roots > 0 {
				t.Error("asked for roots though nobody is named")
			}
		})
	}
}

func TestListsThatCannotBeUnderstood(t *testing.T) {
	root := newAuthority(t).load()
	good := revoke(t, root, nil)
	critical := pkix.Extension{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}
	delta := pkix.Extension{Id: []int{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}
	for name, data := range map[string][]byte{
		"neither PEM nor DER":              []byte("hello"),
		"a block of type \"CERTIFICATE\"":  encodeCertificate(root.issuer.Raw),
		"parse revocation list 2":          append(crlPEM(good), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("x")})...),
		"what follows the last is not PEM": append(crlPEM(good), "tail"...),
		"it is a delta":                    revoke(t, root, []pkix.Extension{delta}),
		"1.2.3 is not understood":          revoke(t, root, []pkix.Extension{critical}),
	} {
		if _, err := ParseRevocationLists(data); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	blank := good
	for blank[len(blank)-1] != '\n' { // the last byte of a signature may be a blank
		blank = revoke(t, root, nil)
	}
	for name, data := range map[string][]byte{"nothing": nil, "blanks": []byte("\n \n"), "one": good, "one that ends like a line": blank, "two": crlPEM(good, good)} {
		if _, err := ParseRevocationLists(data); err != nil {
			t.Errorf("control: %s: %v", name, err)
		}
	}
}

func TestHandshakeRefusesTheRevoked(t *testing.T) {
	a := newAuthority(t)
	web, cart := sign(t, a, id("shop", "web"), time.Hour), sign(t, a, id("shop", "cart"), time.Hour)
	server := func(r *Revocations) *tls.Config { return RefuseRevoked(ServerTLS(cart, "cluster.local"), cart, r) }
	client := func(r *Revocations) *tls.Config {
		return RefuseRevoked(ClientTLSForSANs(web, []string{cart.Identity.String()}), web, r)
	}
	for _, tc := range []struct {
		name             string
		server, client   *Revocations
		atServer, atPeer bool
	}{
		{"control: nobody", nil, mustParse(t, nil), false, false},
		{"the client", mustParse(t, revoke(t, a.load(), nil, web.Leaf)), nil, true, false},
		{"the server", nil, mustParse(t, revoke(t, a.load(), nil, cart.Leaf)), false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, serverErr, clientErr := handshake(t, server(tc.server), client(tc.client))
			if errors.Is(serverErr, ErrRevoked) != tc.atServer || errors.Is(clientErr, ErrRevoked) != tc.atPeer {
				t.Errorf("server: %v; client: %v", serverErr, clientErr)
			}
		})
	}
}

func TestRevocationFileIsFollowed(t *testing.T) {
	a := newAuthority(t)
	web := sign(t, a, id("shop", "web"), time.Hour)
	revoked := func(f *RevocationFile) bool {
		return f.Load().Check([]*x509.Certificate{web.Leaf}, func() []*x509.Certificate { return web.RootCerts }) != nil
	}
	path := filepath.Join(t.TempDir(), "crl.pem")
	var log syncBuffer
	f, err := OpenRevocationFile(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil || revoked(f) {
		t.Fatalf("a file that is not there yet: %v, revoked %v", err, revoked(f))
	}
	follow(t, f.Watch)
	changed := f.Changed()
	write(t, path, string(crlPEM(revoke(t, a.load(), nil, web.Leaf))))
	soon(t, "the list", changed)
	if !revoked(f) {
		t.Error("not revoked")
	}
	write(t, path, "nonsense")
	log.await(t, "the last good ones stay in force")
	if s := f.State(); !revoked(f) || s.Err == nil || len(s.Lists) != 1 || s.Lists[0].Len() != 1 {
		t.Errorf("after a bad file: revoked %v, %+v", revoked(f), s)
	}
	changed = f.Changed()
	write(t, path, "")
	soon(t, "the empty file", changed)
	if s := f.State(); revoked(f) || s.Err != nil {
		t.Errorf("control: an empty file revokes: %+v", s)
	}
	write(t, path, "nonsense")
	if _, err := OpenRevocationFile(path, quiet); err == nil {
		t.Error("started with a file that cannot be understood")
	}
}

func FuzzRevocationLists(f *testing.F) {
	root := fakeSigning()
	cert, err := root.certify(id("shop", "web"), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	der := revoke(f, root, nil, cert.Leaf)
	f.Add(der)
	f.Add(crlPEM(der, der))
	f.Add([]byte("-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		lists, err := ParseRevocationLists(data)
		if err != nil && lists != nil {
			t.Fatal("lists and an error")
		}
		r := &Revocations{lists: lists}
		_ = r.Check([]*x509.Certificate{cert.Leaf}, func() []*x509.Certificate { return cert.RootCerts })
	})
}
