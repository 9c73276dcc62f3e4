// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"log/slog"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/identity/fakeca"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

const fakeValidity = 24 * time.Hour

type fakeCA struct{ signing *signing }

// NewFakeCA signs whatever it is asked for with a root whose key everyone has: package fakeca's. Processes that use it
// trust each other, and nothing else should trust them; it logs a warning that says so.
func NewFakeCA() Signer {
	slog.Default().Warn("certificates are signed by the public test root: every identity can be forged")
	return &fakeCA{signing: fakeSigning()}
}

func fakeSigning() *signing {
	roots, err := parseCertificates(fakeca.RootPEM)
	if err != nil {
		panic(err) // embedded: a test parses it
	}
	key, err := parseKey("key.pem", fakeca.KeyPEM)
	if err != nil {
		panic(err)
	}
	return &signing{key: key, issuer: roots[0], bundle: roots}
}

func (f *fakeCA) Sign(_ context.Context, id mesh.Identity) (*Certificate, error) {
	return f.signing.certify(id, fakeValidity)
}
