// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
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
	c, err := authoritySigner{a.load(), ttl}.Sign(context.Background(), who)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type authoritySigner struct {
	a   *signing
	ttl time.Duration
}

func (s authoritySigner) Sign(_ context.Context, who mesh.Identity) (*Certificate, error) {
	key, csr, err := newRequest(who)
	if err != nil {
		return nil, err
	}
	chain, err := s.a.signCSR(csr, who, s.ttl)
	if err != nil {
		return nil, err
	}
	return newCertificate(who, key, chain)
}

// syncBuffer is a log that can be waited for.
type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) await(t *testing.T, want string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(10 * time.Second); ; {
		b.mu.Lock()
		found := strings.Contains(b.text.String(), want)
		b.mu.Unlock()
		if found {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("no %q in the log within 10 s", want)
		}
	}
}
