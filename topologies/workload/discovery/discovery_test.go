// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/xds"
)

const mesh = `workloads:
- {uid: Kubernetes//Pod/shop/web, name: web, namespace: shop, serviceAccount: web, protocol: HBONE, workloadIps: [10.0.0.1]}
- {uid: Kubernetes//Pod/shop/cart, name: cart, namespace: shop, serviceAccount: cart, protocol: HBONE, workloadIps: [10.0.0.2]}
`

func config(t *testing.T) (c Config, roots string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c = Config{
		Listen: l.Addr().String(), Mesh: mesh, Victim: "Kubernetes//Pod/shop/cart",
		Cert: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})),
	}
	roots = filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(roots, []byte(c.Cert), 0o600); err != nil {
		t.Fatal(err)
	}
	return c, roots
}

// decoder is a client's handler that takes what decodes.
type decoder struct{}

func (decoder) Update(_ string, up []xds.Resource, _ []string) (bad []xds.Rejection) {
	for _, r := range up {
		w, _, err := xds.DecodeAddress(r.Value)
		if err == nil && w != nil && w.UID != r.Name {
			err = errors.New("is another")
		}
		if err != nil {
			bad = append(bad, xds.Rejection{Name: r.Name, Err: err})
		}
	}
	return bad
}

// TestEveryStepIsAnswered has our own client meet every step.
func TestEveryStepIsAnswered(t *testing.T) {
	cfg, roots := config(t)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client, err := xds.NewClient(xds.ClientConfig{
		Address: "https://" + cfg.Listen, RootCAFile: roots, Handler: decoder{}, Types: types, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 2)
	listening := make(chan struct{})
	go func() { done <- s.Run(ctx, func() { close(listening) }) }()
	<-listening
	go func() { done <- client.Run(ctx) }()
	defer func() {
		stop()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}()
	for _, name := range Steps() {
		r, err := s.Step(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		switch name {
		case "good", "remove":
			if !r.Acked {
				t.Errorf("%+v", r)
			}
		case "garbage", "no-nonce", "oversized":
			if !r.Ended || r.Held == 0 {
				t.Errorf("%+v", r)
			}
		default:
			if r.Acked || r.Ended || r.Nack == "" {
				t.Errorf("%+v", r)
			}
		}
	}
	if _, err := s.Step(ctx, "dance"); err == nil || !strings.Contains(err.Error(), "there are: both") {
		t.Errorf("unknown step: %v", err)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	good, _ := config(t)
	for name, spoil := range map[string]func(*Config){
		"certificate": func(c *Config) { c.Cert = "x" }, "mesh": func(c *Config) { c.Mesh = "workloads: 1" }, "victim": func(c *Config) { c.Victim = "nobody" },
	} {
		bad := good
		spoil(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(good); err != nil {
		t.Error("control:", err)
	}
}
