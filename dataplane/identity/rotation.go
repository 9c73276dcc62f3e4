// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The steps by which one root of an authority's directory takes another's place. Each is one rename at its core, so that a
// crash leaves the directory before or after it; whoever serves the directory reloads it. Between two steps everybody
// who holds a certificate must have a new one: AuthorityState.Trust says which are old.

// ErrNoStep says that a rotation is not at the point where the step is next.
var ErrNoStep = errors.New("not the next step")

// AddRoot makes a new root that is trusted and does not sign yet. It is the first step.
func AddRoot(dir, trustDomain string) error {
	now, err := readSigning(dir)
	if err != nil {
		return fmt.Errorf("add root: %w", err)
	}
	switch added, err := rootAdded(dir, now.bundle); {
	case err != nil:
		return fmt.Errorf("add root: %w", err)
	case added:
		return fmt.Errorf("add root: %w: %s is there, so a root was added before; sign with it first", ErrNoStep, nextKeyFile)
	}
	if len(now.bundle) > 1 {
		return fmt.Errorf("add root: %w: %d roots are trusted; drop the old ones first", ErrNoStep, len(now.bundle))
	}
	next := filepath.Join(dir, nextKeyFile)
	key, err := createKey(next)
	if err != nil {
		return fmt.Errorf("add root: %w", err)
	}
	root, err := newRoot(key, trustDomain)
	if err == nil {
		err = writePrivate(filepath.Join(dir, authorityBundleFile), encodeCertificates(append(now.bundle, root)))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("add root: %w", err), os.Remove(next))
	}
	return nil
}

// rootAdded reports whether a root was added that does not sign yet. A key alone is none: a crash came between the two
// writes of a step, and the next time that the step is done writes over it.
func rootAdded(dir string, bundle []*x509.Certificate) (bool, error) {
	path := filepath.Join(dir, nextKeyFile)
	data, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	key, err := parseKey(path, data)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(bundle, func(c *x509.Certificate) bool { return owns(key, c) }), nil
}

// SignWithNewRoot makes the added root the one that signs. The old root stays trusted, and its key in the directory: to go
// back, rename it.
func SignWithNewRoot(dir string) error {
	if _, err := readSigning(dir); err != nil {
		return fmt.Errorf("sign with new root: %w", err)
	}
	next := filepath.Join(dir, nextKeyFile)
	data, err := readPrivate(next)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sign with new root: %w: there is no %s; add a root first", ErrNoStep, nextKeyFile)
	}
	if err != nil {
		return fmt.Errorf("sign with new root: %w", err)
	}
	key, err := parseKey(next, data)
	if err != nil {
		return fmt.Errorf("sign with new root: %w", err)
	}
	bundle, err := readCertificates(filepath.Join(dir, authorityBundleFile))
	if err != nil {
		return fmt.Errorf("sign with new root: %w", err)
	}
	if !slices.ContainsFunc(bundle, func(c *x509.Certificate) bool { return owns(key, c) }) {
		return fmt.Errorf("sign with new root: %w: %s belongs to no certificate of %s, so its step was interrupted; add a root again",
			ErrNoStep, nextKeyFile, authorityBundleFile)
	}
	old := filepath.Join(dir, authorityKeyFile)
	if exists(filepath.Join(dir, rootKeyFile)) {
		old = filepath.Join(dir, rootKeyFile)
	}
	if data, err = readPrivate(old); err == nil {
		err = writePrivate(filepath.Join(dir, oldKeyFile), data)
	}
	if err == nil {
		err = os.Rename(next, filepath.Join(dir, authorityKeyFile))
	}
	if err == nil {
		// Of no meaning without the intermediate's key, which is gone.
		err = removeAll(dir, authorityChainFile, rootKeyFile)
	}
	if err != nil {
		return fmt.Errorf("sign with new root: %w", err)
	}
	return nil
}

// DropOldRoots ends the trust in every root but the one that signs. It is the last step.
func DropOldRoots(dir string) error {
	now, err := readSigning(dir)
	if err != nil {
		return fmt.Errorf("drop old roots: %w", err)
	}
	switch added, err := rootAdded(dir, now.bundle); {
	case err != nil:
		return fmt.Errorf("drop old roots: %w", err)
	case added:
		return fmt.Errorf("drop old roots: %w: the root that was added does not sign yet", ErrNoStep)
	}
	if len(now.bundle) == 1 {
		return fmt.Errorf("drop old roots: %w: only one root is trusted", ErrNoStep)
	}
	err = writePrivate(filepath.Join(dir, authorityBundleFile), encodeCertificate(now.bundle[0].Raw))
	if err == nil {
		err = removeAll(dir, oldKeyFile, nextKeyFile)
	}
	if err != nil {
		return fmt.Errorf("drop old roots: %w", err)
	}
	return nil
}

// NewIntermediate has the root sign a new intermediate authority, which signs from then on. The root's key moves to
// root-key.pem, and may be taken away until the next time.
func NewIntermediate(dir, trustDomain string) error {
	now, err := readSigning(dir)
	if err != nil {
		return fmt.Errorf("make intermediate: %w", err)
	}
	rootKey, err := rootKeyOf(dir, now)
	if err != nil {
		return fmt.Errorf("make intermediate: %w", err)
	}
	switch added, err := rootAdded(dir, now.bundle); {
	case err != nil:
		return fmt.Errorf("make intermediate: %w", err)
	case added:
		return fmt.Errorf("make intermediate: %w: a root was added; sign with it first", ErrNoStep)
	}
	next := filepath.Join(dir, nextKeyFile)
	key, err := createKey(next)
	if err != nil {
		return fmt.Errorf("make intermediate: %w", err)
	}
	cert, err := newIntermediate(now.bundle[0], rootKey, key, trustDomain)
	chain := filepath.Join(dir, authorityChainFile)
	if err == nil { // good for the key that signs now and for the one that will
		err = writePrivate(chain, encodeCertificates(append([]*x509.Certificate{cert}, now.chain...)))
	}
	if err == nil {
		err = os.Rename(next, filepath.Join(dir, authorityKeyFile))
	}
	if err == nil {
		err = writePrivate(chain, encodeCertificate(cert.Raw))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make intermediate: %w", err), removeAll(dir, nextKeyFile))
	}
	return nil
}

// rootKeyOf finds the key of the root that everything leads to, and keeps it where it stays when another key signs.
func rootKeyOf(dir string, now *signing) (crypto.Signer, error) {
	path := filepath.Join(dir, rootKeyFile)
	if len(now.chain) == 0 {
		data, err := readPrivate(filepath.Join(dir, authorityKeyFile))
		if err != nil {
			return nil, err
		}
		return now.key, writePrivate(path, data)
	}
	data, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("the root's key is needed: %w", err)
	}
	key, err := parseKey(path, data)
	if err == nil && !owns(key, now.bundle[0]) {
		err = fmt.Errorf("%s does not belong to the root", rootKeyFile)
	}
	return key, err
}

func newIntermediate(root *x509.Certificate, rootKey, key crypto.Signer, trustDomain string) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{trustDomain}, CommonName: "ambientlab intermediate"},
		NotBefore: now.Add(-backdate), NotAfter: root.NotAfter, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, root, key.Public(), rootKey)
	if err != nil {
		return nil, fmt.Errorf("sign intermediate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// removeAll removes files of dir; that one is not there is no error.
func removeAll(dir string, names ...string) error {
	var errs []error
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
