// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Istio's own Secret has ca-cert.pem and no bundle, and keys in the forms of openssl.
func TestFilesAsIstioWritesThem(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	ecRoot, err := newRoot(ec, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	big, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaRoot, err := newRoot(big, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	ecKey := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})
	for name, f := range map[string]Files{
		"EC":           {authorityKeyFile: ecKey, authorityCertFile: encodeCertificate(ecRoot.Raw)},
		"RSA":          {authorityKeyFile: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(big)}), authorityCertFile: encodeCertificate(rsaRoot.Raw)},
		"empty bundle": {authorityKeyFile: ecKey, authorityCertFile: encodeCertificate(ecRoot.Raw), authorityBundleFile: {}},
	} {
		t.Run(name, func(t *testing.T) {
			if edits, err := f.create("cluster.local"); err != nil || len(edits) != 0 {
				t.Errorf("another root is made: %d edits, %v", len(edits), err)
			}
			s, err := f.signing()
			if err != nil {
				t.Fatal(err)
			}
			if c, err := s.certify(id("shop", "web"), time.Hour); err != nil || len(c.RootCerts) != 1 {
				t.Errorf("certificate %v, %v", c, err)
			}
		})
	}
	other := Files{authorityKeyFile: ecKey, authorityCertFile: encodeCertificate(rsaRoot.Raw)}
	if _, err := other.signing(); err == nil || !strings.Contains(err.Error(), "does not belong") {
		t.Errorf("control: a key of another root: %v", err)
	}
}

func TestEdits(t *testing.T) {
	before := Files{"a": []byte("1"), "b": []byte("2")}
	got := before.Apply([]Edit{{Name: "c", Data: []byte("3")}, {Name: "a", From: "b"}, {Name: "nothing"}})
	if diff := cmp.Diff(Files{"a": []byte("2"), "c": []byte("3")}, got); diff != "" {
		t.Error(diff)
	}
	if len(before) != 2 {
		t.Error("what edits were made of has changed")
	}
}

// A step that fails leaves the directory as it was, until its core is done.
func TestAFailedStepIsUndone(t *testing.T) {
	for _, tc := range []struct {
		name  string
		edits []Edit
		want  []string
	}{
		{"before the rename", []Edit{{Name: authorityCertFile, Data: []byte("x")}, {Name: "no/such/place", Data: []byte("x")}}, nil},
		{"after the rename", []Edit{{Name: nextKeyFile, Data: []byte("x")}, {Name: rootKeyFile, From: nextKeyFile}, {Name: "no/such/place", Data: []byte("x")}}, []string{rootKeyFile}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Directory(filepath.Join(t.TempDir(), "ca"))
			if err := d.Change(t.Context(), func(Files) ([]Edit, error) { return tc.edits, nil }); err == nil {
				t.Fatal("no error")
			}
			files, err := d.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, slices.Sorted(maps.Keys(files))); diff != "" {
				t.Error(diff)
			}
		})
	}
	refused := errors.New("refused")
	d := Directory(filepath.Join(t.TempDir(), "ca"))
	if err := d.Change(t.Context(), func(Files) ([]Edit, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Error(err)
	}
	if _, err := os.Stat(string(d)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a step that was refused made a directory: %v", err)
	}
}
