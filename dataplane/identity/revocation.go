// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrRevoked says that a list of an issuer's names the peer's certificate, or one that it leads through.
var ErrRevoked = errors.New("peer's certificate is revoked")

// maxLists bounds a file of revocation lists.
const maxLists = 64 << 20

// RevocationList is one issuer's.
type RevocationList struct {
	list    *x509.RevocationList
	serials map[string]time.Time // when revoked, by serial number
}

// Issuer is the name of whom the list is of, and says it signed it.
func (l *RevocationList) Issuer() string { return l.list.Issuer.String() }

// Updated and Next are when the list was made and when the next should follow; Next may be zero.
func (l *RevocationList) Updated() time.Time { return l.list.ThisUpdate }

// Next is when the issuer promised the next list; zero if it did not. A list is heeded after that too: what was revoked
// stays revoked.
func (l *RevocationList) Next() time.Time { return l.list.NextUpdate }

// Len is how many certificates the list revokes.
func (l *RevocationList) Len() int { return len(l.serials) }

// ParseRevocationLists reads any number of lists: one as DER, or any as PEM. Empty data hold none, and revoke nothing. One
// that cannot be read makes the whole worthless.
func ParseRevocationLists(data []byte) ([]*RevocationList, error) {
	if len(data) > maxLists {
		return nil, fmt.Errorf("parse revocation lists: %d bytes, more than %d", len(data), maxLists)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		l, err := parseRevocationList(data)
		if err != nil {
			return nil, fmt.Errorf("parse revocation list: neither PEM nor DER: %w", err)
		}
		return []*RevocationList{l}, nil
	}
	var lists []*RevocationList
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("parse revocation lists: a block of type %q", block.Type)
		}
		l, err := parseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse revocation list %d: %w", len(lists)+1, err)
		}
		lists = append(lists, l)
	}
	if len(bytes.TrimSpace(data)) > 0 {
		return nil, errors.New("parse revocation lists: what follows the last is not PEM")
	}
	return lists, nil
}

// Object identifiers of what would change a list's meaning (RFC 5280 §5.2.4, §5.2.5).
const (
	oidDelta        = "2.5.29.27"
	oidDistribution = "2.5.29.28"
)

func parseRevocationList(der []byte) (*RevocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	for _, e := range list.Extensions {
		switch id := e.Id.String(); {
		case id == oidDelta:
			return nil, errors.New("it is a delta, which means nothing alone")
		case e.Critical && id != oidDistribution:
			return nil, fmt.Errorf("critical extension %s is not understood", id)
		}
	}
	l := &RevocationList{list: list, serials: make(map[string]time.Time, len(list.RevokedCertificateEntries))}
	for _, e := range list.RevokedCertificateEntries {
		if e.ReasonCode != reasonRemoved {
			l.serials[string(e.SerialNumber.Bytes())] = e.RevocationTime
		}
	}
	l.list.RevokedCertificateEntries, l.list.Raw = nil, nil // the map has them
	return l, nil
}

// reasonRemoved takes a certificate off a list (RFC 5280 §5.3.1, removeFromCRL).
const reasonRemoved = 8

// names reports whether c's serial number is on a list of an issuer of that name.
func (l *RevocationList) names(c *x509.Certificate) bool {
	if !bytes.Equal(l.list.RawIssuer, c.RawIssuer) {
		return false
	}
	_, named := l.serials[string(c.SerialNumber.Bytes())]
	return named
}

// revokes says whether l, which names c, was signed by one of issuers who signed c too. That costs signatures, and is rare.
func (l *RevocationList) revokes(c *x509.Certificate, issuers []*x509.Certificate) (time.Time, bool) {
	at := l.serials[string(c.SerialNumber.Bytes())]
	for _, i := range issuers {
		if bytes.Equal(i.RawSubject, c.RawIssuer) && l.list.CheckSignatureFrom(i) == nil && c.CheckSignatureFrom(i) == nil {
			return at, true
		}
	}
	return time.Time{}, false
}

// Revocations are the lists in force at one moment. nil has none.
type Revocations struct{ lists []*RevocationList }

// Lists are all lists.
func (r *Revocations) Lists() []*RevocationList {
	if r == nil {
		return nil
	}
	return r.lists
}

// Check judges what a peer presented, leaf first, given the roots that it may lead to. Its error wraps ErrRevoked. A list
// counts only for certificates of those who signed it, and a certificate that no list speaks of is good.
func (r *Revocations) Check(chain []*x509.Certificate, roots func() []*x509.Certificate) error {
	if r == nil {
		return nil
	}
	for _, c := range chain {
		for _, l := range r.lists {
			if !l.names(c) {
				continue
			}
			if at, revoked := l.revokes(c, slices.Concat(chain[1:], roots())); revoked {
				return fmt.Errorf("%w: CERT_REVOKED: serial %s of %s, by %s on %s", ErrRevoked, c.SerialNumber, who(c), l.Issuer(), at.UTC().Format(time.RFC3339))
			}
		}
	}
	return nil
}

func who(c *x509.Certificate) string {
	if len(c.URIs) > 0 {
		return c.URIs[0].String()
	}
	return c.Subject.String()
}
