// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/identity"
)

func TestWhoIsBehindAChangeOfRoots(t *testing.T) {
	p := startPlane(t, caObjects()...)
	token := p.issuer.sign(t, claims("istio-system", "ztunnel", "ztunnel-node1", "uid-ztunnel-node1", "node1"))
	ask := func(account string, ttl time.Duration) {
		t.Helper()
		if _, err := p.create(t, token, newRequest(t, ""), "spiffe://cluster.local/ns/shop/sa/"+account, ttl); err != nil {
			t.Fatal(err)
		}
	}
	ask("cart", time.Hour)
	ask("starting", time.Hour)
	if s := p.AuthorityStatus(); !s.Ready() || s.Version != 1 || len(s.Roots) != 1 || s.Issuer != s.Roots[0] {
		t.Fatalf("control: at first %+v", s)
	} else if s.Directory != "" || s.Namespace != "istio-system" {
		t.Errorf("the authority is in %q of %q", s.Directory, s.Namespace)
	}
	p.cfg.AuthorityDir = "/ca"
	if s := p.AuthorityStatus(); s.Directory != "/ca" || s.Namespace != "" {
		t.Errorf("the authority is in %q of %q, and not in a directory", s.Directory, s.Namespace)
	}
	if err := identity.AddRoot(t.Context(), identity.Directory(p.caDir), "cluster.local"); err != nil {
		t.Fatal(err)
	}
	if changed, err := p.cfg.Authority.Reload(t.Context()); !changed || err != nil {
		t.Fatal(changed, err)
	}
	s := p.AuthorityStatus()
	if s.Ready() || s.Version != 2 || len(s.Roots) != 2 || len(s.Behind) != 2 || s.Behind[0].Holder != "istio-system/ztunnel-node1" ||
		s.Behind[0].Identity != "spiffe://cluster.local/ns/shop/sa/cart" {
		t.Fatalf("after the change: %+v", s)
	}
	ask("cart", time.Hour)
	if s := p.AuthorityStatus(); len(s.Behind) != 1 || s.Behind[0].Identity != "spiffe://cluster.local/ns/shop/sa/starting" {
		t.Errorf("one followed, but behind are %+v", s.Behind)
	}
	ask("starting", time.Hour)
	if s := p.AuthorityStatus(); !s.Ready() {
		t.Errorf("all followed, but behind are %+v", s.Behind)
	}
}

func TestAControlPlaneThatWasRestartedSaysSo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	for _, fresh := range []bool{true, false} {
		a, err := identity.LoadOrCreateAuthority(dir, "cluster.local")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		s, err := New(Config{Source: newMemory(), Authority: a, Authenticator: NewJWKS("", ""), Listener: l, CertTTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if st := s.AuthorityStatus(); st.Ready() != fresh || fresh != (st.UnknownUntil == nil) {
			t.Errorf("fresh %v: %+v", fresh, st)
		}
	}
}

func TestServingCertificateFollowsTheAuthority(t *testing.T) {
	p := startPlane(t)
	first, err := p.serving.get(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.serving.get(time.Now()); err != nil || again != first {
		t.Error("control: issued anew without a reason:", err)
	}
	for _, step := range []func() error{
		func() error { return identity.AddRoot(t.Context(), identity.Directory(p.caDir), "cluster.local") },
		func() error { return identity.SignWithNewRoot(t.Context(), identity.Directory(p.caDir)) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.cfg.Authority.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	now, err := p.serving.get(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if root := p.cfg.Authority.State().Roots[0]; now.Leaf.CheckSignatureFrom(root) != nil || len(now.Certificate) != 2 {
		t.Error("the server does not present a certificate of the new root")
	}
}
