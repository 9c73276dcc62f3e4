// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The steps by which one root of an authority takes another's place. Each is one rename at its core, so that a crash leaves
// a directory before or after it; whoever serves the store reloads it. Between two steps everybody who holds a certificate
// must have a new one: AuthorityState.Trust says which are old.

// ErrNoStep says that a rotation is not at the point where the step is next.
var ErrNoStep = errors.New("not the next step")

// AddRoot makes a new root that is trusted and does not sign yet. It is the first step.
func AddRoot(ctx context.Context, store Store, trustDomain string) error {
	return rotate(ctx, store, "add root", func(f Files, now *signing) ([]Edit, error) {
		switch added, err := f.rootAdded(now.bundle); {
		case err != nil:
			return nil, err
		case added:
			return nil, fmt.Errorf("%w: %s is there, so a root was added before; sign with it first", ErrNoStep, nextKeyFile)
		}
		if len(now.bundle) > 1 {
			return nil, fmt.Errorf("%w: %d roots are trusted; drop the old ones first", ErrNoStep, len(now.bundle))
		}
		key, next, err := newKey(nextKeyFile)
		if err != nil {
			return nil, err
		}
		root, err := newRoot(key, trustDomain)
		if err != nil {
			return nil, err
		}
		return []Edit{next, {Name: authorityBundleFile, Data: encodeCertificates(append(now.bundle, root))}}, nil
	})
}

// rootAdded reports whether a root was added that does not sign yet. A key alone is none: a crash came between the two
// writes of a step, and the next time that the step is done writes over it.
func (f Files) rootAdded(bundle []*x509.Certificate) (bool, error) {
	if !f.has(nextKeyFile) {
		return false, nil
	}
	key, err := f.key(nextKeyFile)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(bundle, func(c *x509.Certificate) bool { return owns(key, c) }), nil
}

func rotate(ctx context.Context, store Store, what string, step func(Files, *signing) ([]Edit, error)) error {
	err := store.Change(ctx, func(f Files) ([]Edit, error) {
		now, err := f.signing()
		if err != nil {
			return nil, err
		}
		return step(f, now)
	})
	if err != nil {
		return fmt.Errorf("%s in %s: %w", what, store, err)
	}
	return nil
}

// SignWithNewRoot makes the added root the one that signs. The old root stays trusted, and its key in the store: to go back,
// rename it.
func SignWithNewRoot(ctx context.Context, store Store) error {
	return rotate(ctx, store, "sign with new root", func(f Files, now *signing) ([]Edit, error) {
		if !f.has(nextKeyFile) {
			return nil, fmt.Errorf("%w: there is no %s; add a root first", ErrNoStep, nextKeyFile)
		}
		key, err := f.key(nextKeyFile)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(now.bundle, func(c *x509.Certificate) bool { return owns(key, c) }) {
			return nil, fmt.Errorf("%w: %s belongs to no certificate of %s, so its step was interrupted; add a root again",
				ErrNoStep, nextKeyFile, authorityBundleFile)
		}
		old := authorityKeyFile
		if f.has(rootKeyFile) {
			old = rootKeyFile
		}
		return []Edit{
			{Name: oldKeyFile, Data: f[old]},
			{Name: authorityKeyFile, From: nextKeyFile},
			{Name: authorityChainFile}, {Name: rootKeyFile}, // of no meaning without the intermediate's key, which is gone
		}, nil
	})
}

// DropOldRoots ends the trust in every root but the one that signs. It is the last step.
func DropOldRoots(ctx context.Context, store Store) error {
	return rotate(ctx, store, "drop old roots", func(f Files, now *signing) ([]Edit, error) {
		switch added, err := f.rootAdded(now.bundle); {
		case err != nil:
			return nil, err
		case added:
			return nil, fmt.Errorf("%w: the root that was added does not sign yet", ErrNoStep)
		}
		if len(now.bundle) == 1 {
			return nil, fmt.Errorf("%w: only one root is trusted", ErrNoStep)
		}
		return []Edit{{Name: authorityBundleFile, Data: encodeCertificate(now.bundle[0].Raw)}, {Name: oldKeyFile}, {Name: nextKeyFile}}, nil
	})
}

// NewIntermediate has the root sign a new intermediate authority, which signs from then on. The root's key moves to
// root-key.pem, and may be taken away until the next time.
func NewIntermediate(ctx context.Context, store Store, trustDomain string) error {
	return rotate(ctx, store, "make intermediate", func(f Files, now *signing) ([]Edit, error) {
		rootKey, edits, err := f.rootKey(now)
		if err != nil {
			return nil, err
		}
		switch added, err := f.rootAdded(now.bundle); {
		case err != nil:
			return nil, err
		case added:
			return nil, fmt.Errorf("%w: a root was added; sign with it first", ErrNoStep)
		}
		key, next, err := newKey(nextKeyFile)
		if err != nil {
			return nil, err
		}
		cert, err := newIntermediate(now.bundle[0], rootKey, key, trustDomain)
		if err != nil {
			return nil, err
		}
		return append(edits, next,
			// Good for the key that signs now and for the one that will.
			Edit{Name: authorityChainFile, Data: encodeCertificates(append([]*x509.Certificate{cert}, now.chain...))},
			Edit{Name: authorityKeyFile, From: nextKeyFile},
			Edit{Name: authorityChainFile, Data: encodeCertificate(cert.Raw)}), nil
	})
}

// rootKey finds the key of the root that everything leads to, and keeps it where it stays when another key signs.
func (f Files) rootKey(now *signing) (crypto.Signer, []Edit, error) {
	if len(now.chain) == 0 {
		return now.key, []Edit{{Name: rootKeyFile, Data: f[authorityKeyFile]}}, nil
	}
	key, err := f.key(rootKeyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("the root's key is needed: %w", err)
	}
	if !owns(key, now.bundle[0]) {
		return nil, nil, fmt.Errorf("%s does not belong to the root", rootKeyFile)
	}
	return key, nil, nil
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
