// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

const (
	rootValidity    = 10 * 365 * 24 * time.Hour
	servingValidity = 365 * 24 * time.Hour
	// backdate forgives clocks of other nodes that are behind ours.
	backdate = 2 * time.Minute
)

// Authority signs workloads' certificates with a key of its own. It is safe for concurrent use.
type Authority struct {
	trustDomain string
	store       Store
	created     bool // by this process, so that nobody holds a certificate of an earlier one

	mu      sync.Mutex
	now     *signing // guarded by mu; replaced as a whole
	version int      // guarded by mu; counts the replacements
	trust   int      // guarded by mu; the version that last changed the roots, or the one that is signed below
}

// signing is what signs, and what is trusted meanwhile. It is immutable.
type signing struct {
	key    crypto.Signer
	issuer *x509.Certificate   // the key's own: a root, or an intermediate
	chain  []*x509.Certificate // from the issuer up to below its root; empty if it is a root
	bundle []*x509.Certificate // all trusted roots, that of the issuer first
}

func (a *Authority) load() *signing {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now
}

// SignCSR issues a certificate for id to the key that signed the request, for ttl or until the root ends. The request's
// own subject is ignored; names in it other than id are refused. The result is PEM, one certificate to an element: leaf
// first, roots last.
func (a *Authority) SignCSR(csrPEM []byte, id mesh.Identity, ttl time.Duration) (chain [][]byte, err error) {
	s, err := a.signerOf(id)
	if err != nil {
		return nil, err
	}
	return s.signCSR(csrPEM, id, ttl)
}

// signerOf is what signs for id, which must be of the authority's trust domain.
func (a *Authority) signerOf(id mesh.Identity) (*signing, error) {
	if id.TrustDomain != a.trustDomain {
		return nil, fmt.Errorf("sign %s: not of trust domain %q", id, a.trustDomain)
	}
	return a.load(), nil
}

func (s *signing) signCSR(csrPEM []byte, id mesh.Identity, ttl time.Duration) (chain [][]byte, err error) {
	csr, err := parseRequest(csrPEM, id)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	if ttl <= 0 {
		return nil, fmt.Errorf("sign %s: lifetime %v", id, ttl)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	der, err := s.issue(&x509.Certificate{URIs: []*url.URL{uri}}, csr.PublicKey, ttl)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	chain = [][]byte{encodeCertificate(der)}
	for _, c := range slices.Concat(s.chain, s.bundle) {
		chain = append(chain, encodeCertificate(c.Raw))
	}
	return chain, nil
}

func parseRequest(csrPEM []byte, id mesh.Identity) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || (block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") {
		return nil, errors.New("request is not a PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check request: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses) > 0 {
		return nil, errors.New("request asks for names that are no URI")
	}
	for _, uri := range csr.URIs {
		if uri.String() != id.String() {
			return nil, fmt.Errorf("request asks for %q", uri)
		}
	}
	return csr, nil
}

func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize >= 256 {
			return nil
		}
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 {
			return nil
		}
	}
	return errors.New("request's key is neither ECDSA of 256 bits nor RSA of 2048 bits")
}

// issue completes and signs t.
func (s *signing) issue(t *x509.Certificate, key crypto.PublicKey, ttl time.Duration) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t.SerialNumber, t.NotBefore, t.NotAfter = serial, now.Add(-backdate), now.Add(ttl)
	if t.NotAfter.After(s.issuer.NotAfter) {
		t.NotAfter = s.issuer.NotAfter
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if _, ok := key.(*rsa.PublicKey); ok {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	t.BasicConstraintsValid = true
	return x509.CreateCertificate(rand.Reader, t, s.issuer, key, s.key)
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

// ServingCertificate issues a certificate, valid for a year, for a server of the control plane under names, of which some
// may be IP addresses. Its key exists in memory only.
func (a *Authority) ServingCertificate(names []string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make serving key: %w", err)
	}
	t := &x509.Certificate{}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	now := a.load()
	der, err := now.issue(t, key.Public(), servingValidity)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign serving certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign serving certificate: %w", err)
	}
	c := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	for _, up := range append(slices.Clone(now.chain), now.bundle[0]) {
		c.Certificate = append(c.Certificate, up.Raw)
	}
	return c, nil
}

// RootsPEM is the bundle that peers of this mesh trust, the root of what is signed now first.
func (a *Authority) RootsPEM() []byte { return encodeCertificates(a.load().bundle) }

func encodeCertificates(certs []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		out.Write(encodeCertificate(c.Raw))
	}
	return out.Bytes()
}

// AuthorityState is what an authority signs with and trusts at one moment.
type AuthorityState struct {
	// Version grows with every change of the files.
	Version int
	// Trust is the version that last changed the roots, or the root that everything new leads to. Certificates of an earlier
	// version may lead to other roots, and their holders may trust other roots.
	Trust  int
	Issuer *x509.Certificate
	Roots  []*x509.Certificate // that of the issuer first
	// Created says that the authority was made by this process.
	Created bool
}

// State is what the authority signs with and trusts now.
func (a *Authority) State() AuthorityState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return AuthorityState{Version: a.version, Trust: a.trust, Issuer: a.now.issuer, Roots: slices.Clone(a.now.bundle), Created: a.created}
}

// newRoot makes a self-signed certificate for key.
func newRoot(key crypto.Signer, trustDomain string) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{trustDomain}, CommonName: "ambientlab root"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(rootValidity),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign root: %w", err)
	}
	return x509.ParseCertificate(der)
}
