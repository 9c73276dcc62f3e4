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
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

const (
	rootValidity    = 10 * 365 * 24 * time.Hour
	servingValidity = 365 * 24 * time.Hour
	// backdate forgives clocks of other nodes that are behind ours.
	backdate = 2 * time.Minute
)

// Authority signs workloads' certificates with a root of its own. It is safe for concurrent use.
type Authority struct {
	trustDomain string
	key         crypto.Signer
	root        *x509.Certificate
	bundle      []*x509.Certificate // root first; the others are trusted too, for a change of root
}

// SignCSR issues a certificate for id to the key that signed the request, for ttl or until the root ends. The request's
// own subject is ignored; names in it other than id are refused. The result is PEM, one certificate to an element: leaf
// first, roots last.
func (a *Authority) SignCSR(csrPEM []byte, id mesh.Identity, ttl time.Duration) (chain [][]byte, err error) {
	csr, err := parseRequest(csrPEM, id)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	if id.TrustDomain != a.trustDomain {
		return nil, fmt.Errorf("sign %s: not of trust domain %q", id, a.trustDomain)
	}
	if ttl <= 0 {
		return nil, fmt.Errorf("sign %s: lifetime %v", id, ttl)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	der, err := a.issue(&x509.Certificate{URIs: []*url.URL{uri}}, csr.PublicKey, ttl)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	chain = [][]byte{encodeCertificate(der)}
	for _, root := range a.bundle {
		chain = append(chain, encodeCertificate(root.Raw))
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
func (a *Authority) issue(t *x509.Certificate, key crypto.PublicKey, ttl time.Duration) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t.SerialNumber, t.NotBefore, t.NotAfter = serial, now.Add(-backdate), now.Add(ttl)
	if t.NotAfter.After(a.root.NotAfter) {
		t.NotAfter = a.root.NotAfter
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if _, ok := key.(*rsa.PublicKey); ok {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	t.BasicConstraintsValid = true
	return x509.CreateCertificate(rand.Reader, t, a.root, key, a.key)
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
	der, err := a.issue(t, key.Public(), servingValidity)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign serving certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign serving certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.root.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// RootsPEM is the bundle that peers of this mesh trust, the signing root first.
func (a *Authority) RootsPEM() []byte {
	var out bytes.Buffer
	for _, root := range a.bundle {
		out.Write(encodeCertificate(root.Raw))
	}
	return out.Bytes()
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
