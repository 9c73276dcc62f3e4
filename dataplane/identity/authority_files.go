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
	"time"
)

// Files of an authority's directory.
const (
	authorityKeyFile    = "ca-key.pem"
	authorityBundleFile = "root-cert.pem"
)

// LoadOrCreateAuthority reads the key and the root bundle from dir, or makes both where neither exists. The bundle's first
// certificate must be the key's own; others after it are trusted too. Directory and files must be closed to everyone but
// their owner: a root key that others can read is worth nothing, so that is an error, not a warning.
func LoadOrCreateAuthority(dir, trustDomain string) (*Authority, error) {
	if trustDomain == "" {
		return nil, errors.New("load authority: no trust domain")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	if err := checkPrivate(dir); err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	a := &Authority{trustDomain: trustDomain}
	var err error
	if a.key, err = loadOrCreateKey(dir); err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	if a.bundle, err = a.loadOrCreateBundle(dir); err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	a.root = a.bundle[0]
	return a, a.check(filepath.Join(dir, authorityBundleFile))
}

func (a *Authority) check(path string) error {
	pub, ok := a.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !pub.Equal(a.root.PublicKey):
		return fmt.Errorf("load authority: the first certificate of %s does not belong to %s", path, authorityKeyFile)
	case !a.root.IsCA:
		return fmt.Errorf("load authority: the first certificate of %s may not sign others", path)
	case time.Now().After(a.root.NotAfter):
		return fmt.Errorf("load authority: the first certificate of %s ended on %s", path, a.root.NotAfter.Format(time.DateOnly))
	}
	return nil
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
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	return key, writePrivate(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// loadOrCreateBundle makes the root anew if only the bundle is missing, as it is after a crash between the two writes.
func (a *Authority) loadOrCreateBundle(dir string) ([]*x509.Certificate, error) {
	path := filepath.Join(dir, authorityBundleFile)
	data, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		root, err := newRoot(a.key, a.trustDomain)
		if err != nil {
			return nil, err
		}
		return []*x509.Certificate{root}, writePrivate(path, encodeCertificate(root.Raw))
	}
	if err != nil {
		return nil, err
	}
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("read %s: no certificate", path)
	}
	return certs, nil
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
