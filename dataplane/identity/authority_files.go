// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// LoadOrCreateAuthority is OpenAuthority for a directory.
func LoadOrCreateAuthority(dir, trustDomain string) (*Authority, error) {
	d := Directory(dir)
	return openAuthority(d, trustDomain, d.change, d.read)
}

// OpenAuthority reads the key and the root bundle from store, or makes both where neither exists. The key must belong to one
// of the roots, or to a certificate of cert-chain.pem, if there is one, from which that file leads to a root.
func OpenAuthority(ctx context.Context, store Store, trustDomain string) (*Authority, error) {
	return openAuthority(store, trustDomain,
		func(step func(Files) ([]Edit, error)) error { return store.Change(ctx, step) },
		func() (Files, error) { return store.Read(ctx) })
}

func openAuthority(store Store, trustDomain string, change func(func(Files) ([]Edit, error)) error, read func() (Files, error)) (*Authority, error) {
	if trustDomain == "" {
		return nil, errors.New("load authority: no trust domain")
	}
	a := &Authority{trustDomain: trustDomain, store: store, version: 1, trust: 1}
	err := change(func(f Files) ([]Edit, error) {
		edits, err := f.create(trustDomain)
		a.created = len(edits) > 0
		return edits, err
	})
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	files, err := read()
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	if a.now, err = files.signing(); err != nil {
		return nil, fmt.Errorf("load authority %s: %w", store, err)
	}
	return a, nil
}

// Reload reads the store again, and reports whether anything is different. After an error everything stays as it was.
func (a *Authority) Reload(ctx context.Context) (changed bool, err error) {
	files, err := a.store.Read(ctx)
	if err != nil {
		return false, fmt.Errorf("reload authority: %w", err)
	}
	next, err := files.signing()
	if err != nil {
		return false, fmt.Errorf("reload authority %s: %w", a.store, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	same := func(x, y *x509.Certificate) bool { return x.Equal(y) }
	roots := slices.EqualFunc(next.bundle, a.now.bundle, same)
	if roots && next.issuer.Equal(a.now.issuer) && slices.EqualFunc(next.chain, a.now.chain, same) {
		return false, nil
	}
	a.now = next
	a.version++
	if !roots {
		a.trust = a.version
	}
	return true, nil
}

// create makes what is missing of a new authority.
func (f Files) create(trustDomain string) ([]Edit, error) {
	var edits []Edit
	var key crypto.Signer
	var err error
	rooted := f.has(authorityBundleFile) || len(f[authorityCertFile]) > 0
	switch {
	case f.has(authorityKeyFile) && rooted:
		return nil, nil
	case rooted:
		return nil, fmt.Errorf("%s exists but %s does not: restore the key, or remove the bundle to start a new root", authorityBundleFile, authorityKeyFile)
	case f.has(authorityKeyFile): // a crash came between the two writes
		key, err = f.key(authorityKeyFile)
	default:
		var e Edit
		key, e, err = newKey(authorityKeyFile)
		edits = append(edits, e)
	}
	if err != nil {
		return nil, err
	}
	root, err := newRoot(key, trustDomain)
	if err != nil {
		return nil, err
	}
	return append(edits, Edit{Name: authorityBundleFile, Data: encodeCertificate(root.Raw)}), nil
}

func (f Files) has(name string) bool {
	_, ok := f[name]
	return ok
}

// signing is what the files say now. Which certificate signs is decided by the key alone, so that one renamed file changes
// the signer in one step.
func (f Files) signing() (*signing, error) {
	s := &signing{}
	var err error
	if s.key, err = f.key(authorityKeyFile); err != nil {
		return nil, err
	}
	bundle := authorityBundleFile
	if len(f[bundle]) == 0 && len(f[authorityCertFile]) > 0 {
		bundle = authorityCertFile // a self-signed root of Istio's
	}
	if s.bundle, err = f.certificates(bundle); err != nil {
		return nil, err
	}
	if len(s.bundle) == 0 {
		return nil, fmt.Errorf("read %s: no certificate", bundle)
	}
	var chain []*x509.Certificate
	for _, name := range [...]string{authorityCertFile, authorityChainFile} {
		more, err := f.certificates(name)
		if err != nil {
			return nil, err
		}
		for _, c := range more {
			if !slices.ContainsFunc(chain, c.Equal) {
				chain = append(chain, c)
			}
		}
	}
	if err := s.choose(chain, time.Now()); err != nil {
		return nil, err
	}
	return s, nil
}

func (f Files) certificates(name string) ([]*x509.Certificate, error) {
	certs, err := parseCertificates(f[name])
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return certs, nil
}

// choose finds the certificate that signs, and puts the root that it leads to first.
func (s *signing) choose(chain []*x509.Certificate, now time.Time) error {
	var root int
	chain = slices.DeleteFunc(chain, selfSigned) // roots are in the bundle
	if i := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return owns(s.key, c) }); i >= 0 {
		s.issuer, s.chain = chain[i], chain[i:]
		last := s.chain[len(s.chain)-1]
		root = slices.IndexFunc(s.bundle, func(r *x509.Certificate) bool { return last.CheckSignatureFrom(r) == nil })
		if root < 0 {
			return fmt.Errorf("%s does not lead to a certificate of %s", authorityChainFile, authorityBundleFile)
		}
	} else if root = slices.IndexFunc(s.bundle, func(r *x509.Certificate) bool { return owns(s.key, r) }); root >= 0 {
		s.issuer = s.bundle[root]
	}
	switch {
	case root < 0:
		return fmt.Errorf("%s does not belong to a certificate of %s, nor of %s", authorityKeyFile, authorityBundleFile, authorityChainFile)
	case !s.issuer.IsCA:
		return fmt.Errorf("the certificate of %s may not sign others", authorityKeyFile)
	case now.After(s.issuer.NotAfter):
		return fmt.Errorf("the certificate of %s ended on %s", authorityKeyFile, s.issuer.NotAfter.Format(time.DateOnly))
	}
	first := s.bundle[root]
	s.bundle = append([]*x509.Certificate{first}, slices.Delete(s.bundle, root, root+1)...)
	return nil
}

// owns reports whether key is the one that c certifies.
func owns(key crypto.Signer, c *x509.Certificate) bool {
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(c.PublicKey)
}

// newKey makes a key, and the edit that keeps it.
func newKey(name string) (crypto.Signer, Edit, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, Edit{}, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, Edit{}, fmt.Errorf("make key: %w", err)
	}
	return key, Edit{Name: name, Data: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}, nil
}

func (f Files) key(name string) (crypto.Signer, error) {
	if !f.has(name) {
		return nil, fmt.Errorf("there is no %s", name)
	}
	return parseKey(name, f[name])
}

// parseKey reads a key in any of the forms that Istio and openssl write.
func parseKey(name string, data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("read %s: not PEM", name)
	}
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read %s: a %T cannot sign", name, key)
	}
	return signer, nil
}
