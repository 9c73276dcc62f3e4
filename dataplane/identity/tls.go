// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// What can be wrong with a peer; a failed handshake wraps one of them on the side that found it.
var (
	ErrUntrusted          = errors.New("peer's certificate does not lead to a trusted root")
	ErrTrustDomain        = errors.New("peer is of another trust domain")
	ErrUnexpectedIdentity = errors.New("peer is not who was expected")
)

// ServerTLS is the configuration of an HBONE listener that presents cert: TLS 1.3, a client certificate that leads to one
// of cert's roots and whose identity is of trustDomain, ALPN h2, no session tickets.
func ServerTLS(cert *Certificate, trustDomain string) *tls.Config {
	cfg := baseTLS(cert)
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.SessionTicketsDisabled = true
	roots := cert.Roots
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyChain(roots, cs.PeerCertificates, x509.ExtKeyUsageClientAuth); err != nil {
			return err
		}
		id, err := PeerIdentity(&cs)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnexpectedIdentity, err)
		}
		if id.TrustDomain != trustDomain {
			return fmt.Errorf("%w: %s is not of %q", ErrTrustDomain, id, trustDomain)
		}
		return nil
	}
	return cfg
}

// ClientTLS is the configuration of an HBONE connection to a server of which at least one URI is in want. It sends no
// server name and resumes nothing. An empty want refuses every server.
func ClientTLS(cert *Certificate, want []mesh.Identity) *tls.Config {
	sans := make([]string, len(want))
	for i, id := range want {
		sans[i] = id.String()
	}
	return ClientTLSForSANs(cert, sans)
}

// ClientTLSForSANs is ClientTLS for names as a service lists them ("spiffe://…").
func ClientTLSForSANs(cert *Certificate, want []string) *tls.Config {
	cfg := baseTLS(cert)
	cfg.InsecureSkipVerify = true // by host name, which no workload has; VerifyConnection does the rest
	roots := cert.Roots
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyChain(roots, cs.PeerCertificates, x509.ExtKeyUsageServerAuth); err != nil {
			return err
		}
		for _, uri := range cs.PeerCertificates[0].URIs {
			if slices.Contains(want, uri.String()) {
				return nil
			}
		}
		return fmt.Errorf("%w: it is %v, not %s", ErrUnexpectedIdentity, cs.PeerCertificates[0].URIs, strings.Join(want, " or "))
	}
	return cfg
}

// baseTLS leaves key exchange at Go's defaults, which prefer X25519MLKEM768.
func baseTLS(cert *Certificate) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{cert.TLS},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2"},
		// Otherwise the first 128 KiB of a connection go out in records of one segment each.
		DynamicRecordSizingDisabled: true,
	}
}

func verifyChain(roots *x509.CertPool, chain []*x509.Certificate, usage x509.ExtKeyUsage) error {
	if len(chain) == 0 {
		return fmt.Errorf("%w: it presented none", ErrUntrusted)
	}
	opts := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}
	if len(chain) > 1 {
		opts.Intermediates = x509.NewCertPool()
		for _, c := range chain[1:] {
			opts.Intermediates.AddCert(c)
		}
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return nil
}

// PeerIdentity is the identity that the peer proved in the handshake: its certificate's first URI.
func PeerIdentity(cs *tls.ConnectionState) (mesh.Identity, error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return mesh.Identity{}, errors.New("peer identity: no certificate")
	}
	id, err := leafIdentity(cs.PeerCertificates[0])
	if err != nil {
		return mesh.Identity{}, fmt.Errorf("peer identity: %w", err)
	}
	return id, nil
}

// RefuseRevoked makes a configuration of ServerTLS or ClientTLS refuse peers that r names too; own is the certificate that
// the configuration presents. It returns cfg.
func RefuseRevoked(cfg *tls.Config, own *Certificate, r *Revocations) *tls.Config {
	if r == nil {
		return cfg
	}
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return err
		}
		return r.Check(cs.PeerCertificates, func() []*x509.Certificate { return own.RootCerts })
	}
	return cfg
}
