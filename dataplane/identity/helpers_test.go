// SPDX-License-Identifier: Apache-2.0

package identity

import (
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
	c, err := a.load().certify(who, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return c
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
	eventually(t, want+" in the log", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return strings.Contains(b.text.String(), want)
	})
}

// eventually waits for what cannot be waited for otherwise.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}
