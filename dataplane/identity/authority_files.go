// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Files of an authority's directory. The first three have the names that Istio gives to plugged-in authorities.
const (
	authorityKeyFile    = "ca-key.pem"      // signs
	authorityBundleFile = "root-cert.pem"   // all roots that are trusted
	authorityChainFile  = "cert-chain.pem"  // of an intermediate authority: its certificate, and what leads to a root
	nextKeyFile         = "ca-key-next.pem" // of a root that was added and does not sign yet
	oldKeyFile          = "ca-key-old.pem"  // of the root that signed before, until that is dropped
	rootKeyFile         = "root-key.pem"    // of the root, while an intermediate signs
)

// LoadOrCreateAuthority reads the key and the root bundle from dir, or makes both where neither exists. The key must belong
// to one of the roots, or to a certificate of cert-chain.pem, if there is one, from which that file leads to a root. Directory
// and keys must be closed to everyone but their owner: a root key that others can read is worth nothing, so that is an
// error, not a warning.
func LoadOrCreateAuthority(dir, trustDomain string) (*Authority, error) {
	if trustDomain == "" {
		return nil, errors.New("load authority: no trust domain")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	a := &Authority{trustDomain: trustDomain, dir: dir, created: !exists(filepath.Join(dir, authorityBundleFile)), version: 1, trust: 1}
	if err := checkPrivate(dir); err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	if err := createAuthority(dir, trustDomain); err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	var err error
	if a.now, err = readSigning(dir); err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	return a, nil
}

// Reload reads the directory again, and reports whether anything is different. After an error everything stays as it was.
func (a *Authority) Reload() (changed bool, err error) {
	next, err := readSigning(a.dir)
	if err != nil {
		return false, fmt.Errorf("reload authority: %w", err)
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

// createAuthority makes what is missing of a new authority.
func createAuthority(dir, trustDomain string) error {
	key, err := loadOrCreateKey(dir)
	if err != nil {
		return err
	}
	bundle := filepath.Join(dir, authorityBundleFile)
	if exists(bundle) {
		return nil
	}
	// The key may be there: a crash came between the two writes.
	root, err := newRoot(key, trustDomain)
	if err != nil {
		return err
	}
	return writePrivate(bundle, encodeCertificate(root.Raw))
}

// readSigning reads what dir says now. Which certificate signs is decided by the key alone, so that one renamed file
// changes the signer in one step.
func readSigning(dir string) (*signing, error) {
	if err := checkPrivate(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, authorityKeyFile)
	data, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	s := &signing{}
	if s.key, err = parseKey(path, data); err != nil {
		return nil, err
	}
	path = filepath.Join(dir, authorityBundleFile)
	if err := checkPrivate(path); err != nil {
		return nil, err
	}
	if s.bundle, err = readCertificates(path); err != nil {
		return nil, err
	}
	if len(s.bundle) == 0 {
		return nil, fmt.Errorf("read %s: no certificate", path)
	}
	chain, err := readCertificates(filepath.Join(dir, authorityChainFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := s.choose(chain, time.Now()); err != nil {
		return nil, fmt.Errorf("authority %s: %w", dir, err)
	}
	return s, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
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

func loadOrCreateKey(dir string) (crypto.Signer, error) {
	path := filepath.Join(dir, authorityKeyFile)
	data, err := readPrivate(path)
	if err == nil {
		return parseKey(path, data)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if bundle := filepath.Join(dir, authorityBundleFile); exists(bundle) {
		return nil, fmt.Errorf("%s exists but %s does not: restore the key, or remove the bundle to start a new root", bundle, path)
	}
	return createKey(path)
}

// createKey makes a key and writes it to path.
func createKey(path string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, writePrivate(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func parseKey(path string, data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("read %s: not PEM", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read %s: a %T cannot sign", path, key)
	}
	return signer, nil
}

// checkPrivate refuses what anybody but the owner may touch.
func checkPrivate(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	want := fs.FileMode(0o600)
	if info.IsDir() {
		want = 0o700
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s has mode %#o, so others can reach the root key: chmod %o it", path, mode, want)
	}
	return nil
}

func readPrivate(path string) ([]byte, error) {
	if err := checkPrivate(path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// writePrivate puts data at path as a whole or not at all, and on disk before it returns: a root that is lost after it
// signed would cut the mesh in two.
func writePrivate(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
