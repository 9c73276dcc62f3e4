// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
)

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

// What is written is read back by source as the object's status, and changes nothing of what objects mean.
func TestStatusFilesAreMerged(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"cluster.yaml", "policies.yaml"} {
		data, err := os.ReadFile(filepath.Join("testdata/policies", f))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o, _, err := file.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	before := Compile(o, Settings{})
	s := NewStatusDir(filepath.Join(dir, "status/control"), slog.New(slog.DiscardHandler))
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	if err := s.write(before.Conditions); err != nil {
		t.Fatal(err)
	}
	o, problems, err := file.Read(dir)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	c := o.AuthorizationPolicies["istio-system/deny-strangers"].Status.GetConditions()
	if len(c) != 1 || c[0].GetType() != "ZtunnelAccepted" || c[0].GetStatus() != "True" || c[0].GetReason() != "Accepted" || c[0].GetObservedGeneration() != 4 {
		t.Errorf("conditions %v", c)
	}
	if c := o.AuthorizationPolicies["shop/audit"].Status.GetConditions(); len(c) != 1 || c[0].GetStatus() != "False" || c[0].GetReason() != "UnsupportedValue" {
		t.Errorf("conditions %v", c)
	}
	if c := o.PeerAuthentications["shop/cart"].Status.GetConditions(); len(c) != 1 {
		t.Errorf("conditions %v", c)
	}
	if c := o.AuthorizationPolicies["shop/waypoint"].Status.GetConditions(); len(c) != 0 {
		t.Errorf("conditions of a waypoint's policy %v", c)
	}
	if diff := cmp.Diff(document(t, newView(before, nil)), document(t, newView(Compile(o, Settings{}), nil))); diff != "" {
		t.Error(diff)
	}
}

func TestStatusDirHoldsWhatIsThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "status")
	condition := func(name, message string) Condition {
		return Condition{Object: source.Key{Kind: "AuthorizationPolicy", Namespace: "shop", Name: name}, Accepted: true, Reason: ReasonAccepted, Message: message}
	}
	s := NewStatusDir(dir, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.Offer(nil, []Condition{condition("a", "one"), condition("b", "one")})
	eventually(t, "two files", func() bool {
		_, err := os.Stat(filepath.Join(dir, "authorizationpolicy.shop.b.yaml"))
		return err == nil
	})
	s.Offer(nil, []Condition{condition("b", "two")})
	eventually(t, "one file", func() bool { return names(t, dir) == "authorizationpolicy.shop.b.yaml" })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	// The next one writes nothing that is there, and removes what is no more.
	info, err := os.Stat(filepath.Join(dir, "authorizationpolicy.shop.b.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".authorizationpolicy.shop.c.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = NewStatusDir(dir, slog.New(slog.DiscardHandler))
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	if err := s.write([]Condition{condition("b", "two")}); err != nil {
		t.Fatal(err)
	}
	if again, err := os.Stat(filepath.Join(dir, "authorizationpolicy.shop.b.yaml")); err != nil || !os.SameFile(info, again) {
		t.Errorf("the same was written again (%v)", err)
	}
	if err := s.write(nil); err != nil || names(t, dir) != "" {
		t.Errorf("%v, left %q", err, names(t, dir))
	}
}

func TestStatusDirFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "status")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := NewStatusDir(dir, slog.New(slog.DiscardHandler)).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "open status directory") {
		t.Errorf("%v", err)
	}
}
