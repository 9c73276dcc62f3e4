// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func id(namespace, account string) mesh.Identity {
	return mesh.Identity{TrustDomain: "cluster.local", Namespace: namespace, ServiceAccount: account}
}

func newAuthority(t testing.TB) *Authority {
	t.Helper()
	a, err := LoadOrCreateAuthority(t.TempDir()+"/ca", "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// sign has a certify who, as if a's trust domain were who's.
func sign(t testing.TB, a *Authority, who mesh.Identity, ttl time.Duration) *Certificate {
	t.Helper()
	c, err := authoritySigner{a, ttl}.Sign(context.Background(), who)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type authoritySigner struct {
	a   *Authority
	ttl time.Duration
}

func (s authoritySigner) Sign(_ context.Context, who mesh.Identity) (*Certificate, error) {
	key, csr, err := newRequest(who)
	if err != nil {
		return nil, err
	}
	a := *s.a
	a.trustDomain = who.TrustDomain
	chain, err := a.SignCSR(csr, who, s.ttl)
	if err != nil {
		return nil, err
	}
	return newCertificate(who, key, chain)
}
