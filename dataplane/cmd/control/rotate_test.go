// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/identity"
)

func TestRotationByCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := identity.LoadOrCreateAuthority(dir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	first := a.State().Issuer
	step := func(args ...string) error {
		return run(t.Context(), append([]string{"ca", "rotate"}, args...), io.Discard, io.Discard)
	}
	for _, s := range []string{"add", "sign", "drop", "intermediate"} {
		if err := step(s, "--ca-dir", dir, "--control", ""); err != nil {
			t.Fatal(err)
		}
		if changed, err := a.Reload(t.Context()); !changed || err != nil {
			t.Errorf("%s: changed %v, %v", s, changed, err)
		}
	}
	if s := a.State(); len(s.Roots) != 1 || s.Roots[0].Equal(first) || s.Issuer.Equal(s.Roots[0]) {
		t.Errorf("at the end: %+v", s)
	}
	if err := step("drop", "--ca-dir", dir, "--control", ""); !errors.Is(err, identity.ErrNoStep) {
		t.Errorf("out of order: %v", err)
	}
	for _, args := range [][]string{{"add", "--control", ""}, {"dance", "--ca-dir", dir, "--control", ""}, {}} {
		var usage *usageError
		if err := step(args...); !errors.As(err, &usage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestAStepWaitsForThoseWhoAreBehind(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := identity.LoadOrCreateAuthority(dir, "cluster.local"); err != nil {
		t.Fatal(err)
	}
	var version atomic.Int64
	var behind, unknown atomic.Bool
	version.Store(1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s := control.AuthorityStatus{Directory: dir, Version: int(version.Load())}
		if behind.Load() {
			s.Behind = []control.Behind{{Identity: "spiffe://cluster.local/ns/shop/sa/web", Holder: "istio-system/ztunnel-node1"}}
		}
		if unknown.Load() {
			until := time.Now().Add(time.Hour)
			s.UnknownUntil = &until
		}
		version.Add(1) // as if it followed
		_ = json.NewEncoder(w).Encode(s)
	}))
	defer server.Close()
	step := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"ca", "rotate"}, append(args, "--ca-dir", dir, "--control", server.URL)...), &out, io.Discard)
		return out.String(), err
	}
	behind.Store(true)
	if _, err := step("add"); err == nil || !strings.Contains(err.Error(), "sa/web") {
		t.Errorf("one is behind, but %v", err)
	}
	behind.Store(false)
	unknown.Store(true)
	if _, err := step("add"); err == nil || !strings.Contains(err.Error(), "was restarted") {
		t.Errorf("it does not know who is behind, but %v", err)
	}
	unknown.Store(false)
	if out, err := step("add"); err != nil || !strings.Contains(out, "in force") {
		t.Errorf("control: %q, %v", out, err)
	}
	behind.Store(true)
	if _, err := step("sign", "--force"); err != nil {
		t.Errorf("forced: %v", err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"ca", "status", "--control", server.URL}, &out, io.Discard); err != nil || !strings.Contains(out.String(), `"version"`) {
		t.Errorf("status: %s, %v", out.String(), err)
	}
	behind.Store(false)
	out.Reset()
	if err := run(t.Context(), []string{"ca", "rotate", "drop", "--control", server.URL}, &out, io.Discard); err != nil || !strings.Contains(out.String(), "in force") {
		t.Errorf("of the running control plane's authority: %q, %v", out.String(), err)
	}
	server.Close()
	if err := run(t.Context(), []string{"ca", "rotate", "add", "--force", "--control", server.URL}, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "--ca-dir") {
		t.Errorf("nobody says where the authority is, but %v", err)
	}
	if _, err := step("drop"); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("nobody to ask, but %v", err)
	}
}

func TestLocate(t *testing.T) {
	here := t.TempDir()
	for name, tc := range map[string]struct {
		o, want options
		running *control.AuthorityStatus
		says    string
	}{
		"a directory":          {running: &control.AuthorityStatus{Directory: here}, want: options{caDir: here}},
		"one that is not here": {running: &control.AuthorityStatus{Directory: "/not/here"}, says: "--ca-dir"},
		"a Secret":             {running: &control.AuthorityStatus{Namespace: "mesh"}, want: options{inCluster: true, Settings: control.Settings{RootNamespace: "mesh"}}},
		"of another namespace": {
			o: options{Settings: control.Settings{RootNamespace: "other"}}, running: &control.AuthorityStatus{Namespace: "mesh"},
			want: options{inCluster: true, Settings: control.Settings{RootNamespace: "other"}},
		},
		"named":        {o: options{caDir: "/mine"}, running: &control.AuthorityStatus{Directory: here}, want: options{caDir: "/mine"}},
		"nobody says":  {says: "--kubeconfig"},
		"it says none": {running: &control.AuthorityStatus{}, says: "--kubeconfig"},
	} {
		err := tc.o.locate(tc.running)
		if tc.says != "" {
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: %v, want %q", name, err, tc.says)
			}
			continue
		}
		if tc.want.RootNamespace == "" {
			tc.want.RootNamespace = "istio-system"
		}
		if err != nil || tc.o.caDir != tc.want.caDir || tc.o.inCluster != tc.want.inCluster || tc.o.RootNamespace != tc.want.RootNamespace {
			t.Errorf("%s: %q, %v, %q, %v", name, tc.o.caDir, tc.o.inCluster, tc.o.RootNamespace, err)
		}
	}
}
