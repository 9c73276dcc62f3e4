// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Issue makes a key and signs a certificate of id for it, for whoever has the authority's files: it asks nobody who may
// have that identity. It ends after ttl, or with the root if that ends first.
func (a *Authority) Issue(id mesh.Identity, ttl time.Duration) (*Certificate, error) {
	s, err := a.signerOf(id)
	if err != nil {
		return nil, fmt.Errorf("issue certificate of %s: %w", id, err)
	}
	c, err := s.certify(id, ttl)
	if err != nil {
		return nil, fmt.Errorf("issue certificate of %s: %w", id, err)
	}
	return c, nil
}

// certify makes a key and signs for it.
func (s *signing) certify(id mesh.Identity, ttl time.Duration) (*Certificate, error) {
	key, csr, err := newRequest(id)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	chain, err := s.signCSR(csr, id, ttl)
	if err != nil {
		return nil, err
	}
	return newCertificate(id, key, chain)
}
