// SPDX-License-Identifier: Apache-2.0

// Package credential gets the pod that it runs in a certificate of the mesh, with the pod's own service-account token, as
// any program in a pod may whose volumes ask for such a token. It is what an attacker has who took over an application:
// an identity that is really its own, and the freedom to speak HBONE by hand with it. Who may have which identity is the
// authority's decision.
// Source: reference, "CA"; Istio's sidecars get theirs in the same way.
package credential

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Where Istio's pods have what they need: Volumes of package world put it there.
const (
	DefaultCA    = "https://istiod.istio-system.svc:15012"
	DefaultToken = "/var/run/secrets/tokens/istio-token"
	DefaultRoot  = "/var/run/secrets/istio/root-cert.pem"
)

// Files of a saved certificate, in PEM.
const (
	CertFile = "cert.pem" // leaf first, then intermediates
	KeyFile  = "key.pem"  // PKCS#8
	RootFile = "root.pem"
)

// Config says whom to ask, and for what. Empty fields mean the defaults above; a zero Identity is that of the token.
type Config struct {
	CA, TokenFile, RootFile string
	Identity                mesh.Identity
	TrustDomain             string // of the token's identity; "" means mesh.DefaultTrustDomain
	TTL                     time.Duration
}

// Fetch asks the authority for a certificate.
func Fetch(ctx context.Context, c Config) (*identity.Certificate, error) {
	for _, f := range []struct {
		to  *string
		def string
	}{{&c.CA, DefaultCA}, {&c.TokenFile, DefaultToken}, {&c.RootFile, DefaultRoot}, {&c.TrustDomain, mesh.DefaultTrustDomain}} {
		if *f.to == "" {
			*f.to = f.def
		}
	}
	if c.Identity.IsZero() {
		token, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read token: %w", err)
		}
		if c.Identity, err = subject(string(token), c.TrustDomain); err != nil {
			return nil, fmt.Errorf("read token %s: %w", c.TokenFile, err)
		}
	}
	signer := identity.NewCAClient(identity.CAConfig{Address: c.CA, RootCAFile: c.RootFile, TokenFile: c.TokenFile, TTL: c.TTL})
	return signer.Sign(ctx, c.Identity)
}

// subject is whom a service-account token speaks for. Nobody needs to verify it here: the authority does.
func subject(token, trustDomain string) (mesh.Identity, error) {
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		return mesh.Identity{}, errors.New("no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return mesh.Identity{}, fmt.Errorf("decode payload: %w", err)
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return mesh.Identity{}, fmt.Errorf("decode payload: %w", err)
	}
	name, ok := strings.CutPrefix(claims.Subject, "system:serviceaccount:")
	ns, account, cut := strings.Cut(name, ":")
	if !ok || !cut || ns == "" || account == "" {
		return mesh.Identity{}, fmt.Errorf("subject %q is no service account", claims.Subject)
	}
	return mesh.Identity{TrustDomain: trustDomain, Namespace: ns, ServiceAccount: account}, nil
}

// Save writes a certificate, its key and its roots into dir, which only the owner can enter.
func Save(dir string, c *identity.Certificate) error {
	key, err := x509.MarshalPKCS8PrivateKey(c.TLS.PrivateKey)
	if err != nil {
		return fmt.Errorf("save certificate: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save certificate: %w", err)
	}
	var roots [][]byte
	for _, r := range c.RootCerts {
		roots = append(roots, r.Raw)
	}
	for name, data := range map[string][]byte{
		CertFile: certificates(c.TLS.Certificate), RootFile: certificates(roots),
		KeyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return fmt.Errorf("save certificate: %w", err)
		}
	}
	return nil
}

func certificates(ders [][]byte) []byte {
	var b bytes.Buffer
	for _, der := range ders {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a buffer takes everything
	}
	return b.Bytes()
}

// Load reads what Save has written. A config of it speaks TLS 1.3 and HTTP/2 to whomever its roots vouch for: an attacker
// does not care whom it meets.
func Load(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	pemRoots, err := os.ReadFile(filepath.Join(dir, RootFile))
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pemRoots) {
		return nil, fmt.Errorf("load certificate: no root in %s", filepath.Join(dir, RootFile))
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // replaced below: a SPIFFE certificate has no host name to verify
		VerifyConnection:   vouched(roots),
	}, nil
}

func vouched(roots *x509.CertPool) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the server showed no certificate")
		}
		o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		for _, c := range cs.PeerCertificates[1:] {
			o.Intermediates.AddCert(c)
		}
		_, err := cs.PeerCertificates[0].Verify(o)
		return err
	}
}
