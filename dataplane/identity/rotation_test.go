// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// trusts reports whether the holder of a accepts the holder of b.
func trusts(a, b *Certificate) bool {
	return verifyChain(a.Roots, append([]*x509.Certificate{b.Leaf}, b.Chain...), x509.ExtKeyUsageServerAuth) == nil
}

func mustReload(t *testing.T, a *Authority) {
	t.Helper()
	if changed, err := a.Reload(t.Context()); err != nil || !changed {
		t.Fatalf("reload: changed %v, %v", changed, err)
	}
}

func TestRootRotatesInThreeSteps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := LoadOrCreateAuthority(dir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	who := id("shop", "web")
	certs := []*Certificate{sign(t, a, who, time.Hour)}
	for _, step := range []struct {
		do    func() error
		roots int
	}{
		{func() error { return AddRoot(t.Context(), Directory(dir), "cluster.local") }, 2},
		{func() error { return SignWithNewRoot(t.Context(), Directory(dir)) }, 2},
		{func() error { return DropOldRoots(t.Context(), Directory(dir)) }, 1},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		mustReload(t, a)
		next := sign(t, a, who, time.Hour)
		if len(next.RootCerts) != step.roots {
			t.Errorf("%d roots, want %d", len(next.RootCerts), step.roots)
		}
		if last := certs[len(certs)-1]; !trusts(next, last) || !trusts(last, next) {
			t.Error("certificates of two steps in a row do not trust each other")
		}
		certs = append(certs, next)
	}
	if trusts(certs[0], certs[2]) || trusts(certs[3], certs[0]) {
		t.Error("control: who skipped a step is trusted")
	}
	if v := a.State(); v.Version != 4 || v.Trust != 4 || !v.Created || len(v.Roots) != 1 {
		t.Errorf("state %+v", v)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestStepsOutOfOrder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := LoadOrCreateAuthority(dir, "cluster.local"); err != nil {
		t.Fatal(err)
	}
	refused := func(err error) {
		t.Helper()
		if !errors.Is(err, ErrNoStep) {
			t.Errorf("error %v", err)
		}
	}
	refused(SignWithNewRoot(t.Context(), Directory(dir)))
	refused(DropOldRoots(t.Context(), Directory(dir)))
	if err := AddRoot(t.Context(), Directory(dir), "cluster.local"); err != nil {
		t.Fatal(err)
	}
	refused(AddRoot(t.Context(), Directory(dir), "cluster.local"))
	refused(DropOldRoots(t.Context(), Directory(dir)))
	refused(NewIntermediate(t.Context(), Directory(dir), "cluster.local"))
	if err := SignWithNewRoot(t.Context(), Directory(dir)); err != nil {
		t.Fatal(err)
	}
	refused(SignWithNewRoot(t.Context(), Directory(dir)))
	refused(AddRoot(t.Context(), Directory(dir), "cluster.local"))
}

// TestInterruptedSteps: a crash between the two writes of a step leaves a key that belongs to nothing. It is no step done,
// and every step that comes next goes on as if it were not there.
func TestInterruptedSteps(t *testing.T) {
	for name, next := range map[string]struct {
		before, then func(dir string) error
	}{
		"a root is added":         {nil, func(dir string) error { return AddRoot(t.Context(), Directory(dir), "cluster.local") }},
		"an intermediate is made": {nil, func(dir string) error { return NewIntermediate(t.Context(), Directory(dir), "cluster.local") }},
		"old roots are dropped": {func(dir string) error {
			return errors.Join(AddRoot(t.Context(), Directory(dir), "cluster.local"), SignWithNewRoot(t.Context(), Directory(dir)))
		}, func(dir string) error { return DropOldRoots(t.Context(), Directory(dir)) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			a, err := LoadOrCreateAuthority(dir, "cluster.local")
			if err != nil {
				t.Fatal(err)
			}
			if next.before != nil {
				if err := next.before(dir); err != nil {
					t.Fatal(err)
				}
				mustReload(t, a)
			}
			_, key, err := newKey(nextKeyFile)
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, nextKeyFile), string(key.Data))
			if err := SignWithNewRoot(t.Context(), Directory(dir)); !errors.Is(err, ErrNoStep) {
				t.Errorf("signing with a root that was not added: %v", err)
			}
			if changed, err := a.Reload(t.Context()); err != nil || changed {
				t.Errorf("who serves the directory: changed %v, %v", changed, err)
			}
			if err := next.then(dir); err != nil {
				t.Fatal(err)
			}
			mustReload(t, a)
			sign(t, a, id("shop", "web"), time.Hour)
			files, err := Directory(dir).read()
			if err != nil {
				t.Fatal(err)
			}
			if added, err := files.rootAdded(a.now.bundle); err != nil || added != (name == "a root is added") {
				t.Errorf("a root that waits to sign: %v, %v", added, err)
			}
		})
	}
}

func TestIntermediatesRotateUnderOneRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := LoadOrCreateAuthority(dir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	certs := []*Certificate{sign(t, a, id("shop", "web"), time.Hour)}
	for range 2 {
		if err := NewIntermediate(t.Context(), Directory(dir), "cluster.local"); err != nil {
			t.Fatal(err)
		}
		mustReload(t, a)
		c := sign(t, a, id("shop", "web"), time.Hour)
		if len(c.Chain) != 1 || len(c.RootCerts) != 1 || len(c.TLS.Certificate) != 2 {
			t.Errorf("%d intermediates, %d roots, %d to send", len(c.Chain), len(c.RootCerts), len(c.TLS.Certificate))
		}
		for _, old := range certs {
			if !trusts(old, c) || !trusts(c, old) {
				t.Error("a change of intermediate broke trust")
			}
		}
		certs = append(certs, c)
	}
	if s := a.State(); s.Version != 3 || s.Trust != 1 {
		t.Errorf("two intermediates below the same root: %+v", s)
	}
	serving, err := a.ServingCertificate([]string{"istiod"})
	if err != nil || len(serving.Certificate) != 3 {
		t.Errorf("serving certificate: %d, %v", len(serving.Certificate), err)
	}
	// A new root takes the place of root and intermediate.
	for _, step := range []error{AddRoot(t.Context(), Directory(dir), "cluster.local"), SignWithNewRoot(t.Context(), Directory(dir)), DropOldRoots(t.Context(), Directory(dir))} {
		if step != nil {
			t.Fatal(step)
		}
	}
	mustReload(t, a)
	if c := sign(t, a, id("shop", "web"), time.Hour); len(c.Chain) != 0 || len(c.RootCerts) != 1 {
		t.Errorf("%d intermediates, %d roots", len(c.Chain), len(c.RootCerts))
	}
}

func TestBadDirectoryChangesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := LoadOrCreateAuthority(dir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	before := a.State()
	foreign := newAuthority(t)
	for name, spoil := range map[string]func(){
		"another's roots": func() { write(t, filepath.Join(dir, authorityBundleFile), string(foreign.RootsPEM())) },
		"no PEM":          func() { write(t, filepath.Join(dir, authorityBundleFile), "x") },
		"empty":           func() { write(t, filepath.Join(dir, authorityBundleFile), "") },
		"no key":          func() { write(t, filepath.Join(dir, authorityKeyFile), "x") },
	} {
		t.Run(name, func(t *testing.T) {
			defer restore(t, dir, authorityBundleFile, authorityKeyFile)()
			spoil()
			if changed, err := a.Reload(t.Context()); changed || err == nil {
				t.Errorf("changed %v, error %v", changed, err)
			}
			if now := a.State(); now.Version != before.Version || !now.Issuer.Equal(before.Issuer) {
				t.Error("a bad directory changed the authority")
			}
		})
	}
	if changed, err := a.Reload(t.Context()); changed || err != nil {
		t.Errorf("control: restored, yet changed %v, %v", changed, err)
	}
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := writePrivate(path, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func restore(t *testing.T, dir string, names ...string) func() {
	t.Helper()
	old := map[string]string{}
	for _, n := range names {
		data, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil {
			t.Fatal(err)
		}
		old[n] = string(data)
	}
	return func() {
		for n, data := range old {
			write(t, filepath.Join(dir, n), data)
		}
	}
}

// follow runs what follows files until the test ends, and waits for it then.
func follow(t *testing.T, run func(context.Context)) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func soon(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not within 10 s", what)
	}
}

func TestWatchedAuthorityFollowsItsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := LoadOrCreateAuthority(dir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	changed := make(chan struct{}, 8)
	follow(t, func(ctx context.Context) { a.Watch(ctx, quiet, func() { changed <- struct{}{} }) })
	if err := AddRoot(t.Context(), Directory(dir), "cluster.local"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the new root", changed)
	if n := strings.Count(string(a.RootsPEM()), "BEGIN"); n != 2 {
		t.Errorf("%d roots", n)
	}
}

func TestRootsAreWatchedThroughALink(t *testing.T) {
	// As the kubelet does it: root.pem -> ..data/root.pem, ..data -> a directory, replaced by a rename.
	dir := t.TempDir()
	put := func(version string, data []byte) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, version, "root.pem"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	var log syncBuffer
	one, two := newAuthority(t).RootsPEM(), newAuthority(t).RootsPEM()
	put("v1", one)
	path := filepath.Join(dir, "root.pem")
	if err := os.Symlink("..data/root.pem", path); err != nil {
		t.Fatal(err)
	}
	seen, changed := make(chan struct{}), make(chan struct{}, 8)
	follow(t, func(ctx context.Context) {
		f := &rootsFile{path: path, log: slog.New(slog.NewTextHandler(&log, nil)), changed: func() { changed <- struct{}{} }}
		first := true
		watchDir(ctx, dir, quiet, func() {
			f.look()
			if first {
				close(seen)
				first = false
			}
		})
	})
	soon(t, "the first look", seen)
	put("v2", []byte("no bundle"))
	log.await(t, "bundle of roots is no bundle")
	put("v3", one)
	put("v4", two)
	soon(t, "the other root", changed)
	select {
	case <-changed:
		t.Error("more than one change")
	default:
	}
}
