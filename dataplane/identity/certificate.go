// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Certificate is an identity's certificate with its key and the roots that its issuer trusts. It is immutable.
type Certificate struct {
	TLS       tls.Certificate // leaf and intermediates, without the root
	Identity  mesh.Identity
	Leaf      *x509.Certificate
	Chain     []*x509.Certificate // intermediates, nearest to the leaf first; mostly none
	Roots     *x509.CertPool
	RootCerts []*x509.Certificate
}

// Expired reports whether the certificate is of no use at the time now.
func (c *Certificate) Expired(now time.Time) bool { return !now.Before(c.Leaf.NotAfter) }

// Signer obtains certificates. Sign makes a new key for each; it blocks until the answer, an error or the end of ctx.
type Signer interface {
	Sign(ctx context.Context, id mesh.Identity) (*Certificate, error)
}

// newRequest makes a key and a signing request for id: the URI and nothing else, as peers expect of a workload.
func newRequest(id mesh.Identity) (key *ecdsa.PrivateKey, csrPEM []byte, err error) {
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, nil, fmt.Errorf("make request: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make request: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// newCertificate builds a Certificate of an authority's answer: leaf first, roots last, any number of certificates to an
// element. It refuses one that is not for id and key, or that no root of the answer has signed.
func newCertificate(id mesh.Identity, key crypto.Signer, chain [][]byte) (*Certificate, error) {
	certs, err := parseCertificates(bytes.Join(chain, []byte("\n")))
	if err != nil {
		return nil, err
	}
	if len(certs) < 2 {
		return nil, fmt.Errorf("%d certificates, want a leaf and a root at least", len(certs))
	}
	first := len(certs) - 1 // of the roots: the last is one in any case, those before it if they signed themselves
	for first > 1 && selfSigned(certs[first-1]) {
		first--
	}
	c := &Certificate{Identity: id, Leaf: certs[0], Chain: certs[1:first:first], RootCerts: certs[first:], Roots: x509.NewCertPool()}
	for _, root := range c.RootCerts {
		c.Roots.AddCert(root)
	}
	if got, err := leafIdentity(c.Leaf); err != nil || got != id || len(c.Leaf.URIs) != 1 {
		return nil, fmt.Errorf("certificate is for %v, not for %s", c.Leaf.URIs, id)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(c.Leaf.PublicKey) {
		return nil, errors.New("certificate is for another key")
	}
	if err := verifyChain(c.Roots, append([]*x509.Certificate{c.Leaf}, c.Chain...), x509.ExtKeyUsageAny); err != nil {
		return nil, err
	}
	c.TLS = tls.Certificate{PrivateKey: key, Leaf: c.Leaf}
	for _, cert := range certs[:first] {
		c.TLS.Certificate = append(c.TLS.Certificate, cert.Raw)
	}
	return c, nil
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("parse certificates: a block of type %q", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificates: %w", err)
		}
		out = append(out, c)
	}
	if len(bytes.TrimSpace(data)) > 0 {
		return nil, errors.New("parse certificates: what follows the last is not PEM")
	}
	return out, nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func leafIdentity(leaf *x509.Certificate) (mesh.Identity, error) {
	if len(leaf.URIs) == 0 {
		return mesh.Identity{}, errors.New("certificate names no URI")
	}
	return mesh.ParseIdentity(leaf.URIs[0].String())
}
