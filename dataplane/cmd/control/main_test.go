// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/xds"
)

const objects = `apiVersion: v1
kind: Pod
metadata: {name: ztunnel-node1, namespace: istio-system, uid: u1}
spec: {nodeName: node1, serviceAccountName: ztunnel, containers: [{name: app}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, uid: u2, labels: {app: cart}}
spec: {nodeName: node1, serviceAccountName: cart, containers: [{name: app}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.2}]}
`

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		name, args, want string
	}{
		{"nothing", "", "--objects is missing (or --kubeconfig, or --in-cluster)\n--ca-dir is missing\n--jwks is missing"},
		{"several", "--objects x --check --cert-ttl 0s --log-format xml --trusted-accounts ztunnel more", `arguments ["more"] are not understood` +
			"\n--cert-ttl 0s is not positive\n" + `--log-format "xml" is neither text nor json` + "\n" + `--trusted-accounts: "ztunnel" is not namespace/account`},
		{"unknown", "--nonsense", "flag provided but not defined: -nonsense"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := run(t.Context(), strings.Fields(tc.args), io.Discard, io.Discard)
			var usage *usageError
			if !errors.As(err, &usage) || err.Error() != tc.want {
				t.Errorf("%v, want the usage error %q", err, tc.want)
			}
		})
	}
	if err := run(t.Context(), []string{"-h"}, io.Discard, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", objects)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--check", "--objects", dir}, &out, io.Discard); err != nil {
		t.Error(err)
	}
	if want := "2 objects: 2 workloads, 0 services, 0 policies, 0 problems\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	put(t, dir, "b.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {ports: [{port: 0}]}\n")
	out.Reset()
	if err := run(t.Context(), []string{"--check", "--objects", dir}, &out, io.Discard); err == nil {
		t.Error("no error for a bad object")
	}
	if want := "b.yaml: Service shop/s: spec.ports[0].port: 0 is not a port (1 to 65535)\n"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestMissingInputsNameThemselves(t *testing.T) {
	dir := t.TempDir()
	args := []string{"--objects", filepath.Join(dir, "none"), "--ca-dir", filepath.Join(dir, "ca"), "--jwks", filepath.Join(dir, "jwks.json"), "--listen", "127.0.0.1:0", "--http", "", "--ready", ""}
	if err := run(t.Context(), args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "jwks.json") {
		t.Errorf("no keys: %v", err)
	}
	newToken(t, dir)
	if err := run(t.Context(), args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("no objects: %v", err)
	}
}

// startControl runs a control plane on loopback until the test ends, and says where it serves xDS and certificates.
func startControl(t *testing.T, log *logBuffer, args ...string) (address string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	args = append(args, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ready", "127.0.0.1:0")
	go func() { done <- run(ctx, args, io.Discard, log) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return log.await(t, regexp.MustCompile(`control plane started" listen=(\S+)`))
}

// proxied is node1's ztunnel as the control plane sees it, until the test ends.
func proxied(t *testing.T, address, roots, token string) (*store, *xds.Client) {
	t.Helper()
	store := &store{wake: make(chan struct{}), names: map[string]bool{}}
	client, err := xds.NewClient(xds.ClientConfig{
		Address: address, RootCAFile: roots, TokenFile: token, ClusterID: "Kubernetes",
		Node:  xds.Node{ID: "ztunnel~10.0.0.1~ztunnel-node1.istio-system~istio-system.svc.cluster.local"},
		Types: []string{xds.TypeAddress, xds.TypeAuthorization}, Handler: store,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return store, client
}

// The proxy's own clients, a directory of files and this command, over TLS: a change of a file arrives, and a certificate.
func TestEndToEnd(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "objects/a.yaml", objects)
	newToken(t, dir)
	roots := filepath.Join(dir, "roots.pem")
	log := &logBuffer{}
	address := startControl(t, log,
		"--objects", filepath.Join(dir, "objects"), "--ca-dir", filepath.Join(dir, "ca"), "--jwks", filepath.Join(dir, "jwks.json"),
		"--root-cert-out", roots, "--log-level", "debug",
		"--status-dir", filepath.Join(dir, "objects/status/control"), "--root-namespace", "mesh-system")
	store, client := proxied(t, address, roots, filepath.Join(dir, "token"))
	store.await(t, "Kubernetes//Pod/shop/cart")
	<-client.Ready()
	put(t, dir, "objects/b.yaml", strings.ReplaceAll(strings.SplitAfter(objects, "---\n")[1], "cart", "web"))
	store.await(t, "Kubernetes//Pod/shop/web")

	// A policy of the root namespace, one that names its workloads, and what is said of them.
	put(t, dir, "objects/p.yaml", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: all, namespace: mesh-system}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}\n"+
		"---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: cart, namespace: shop}\nspec: {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}}\n")
	store.await(t, "mesh-system/all")
	store.await(t, "mesh-system/istio_converted_static_strict")
	store.await(t, "Kubernetes//Pod/shop/cart names mesh-system/istio_converted_static_strict")
	log.await(t, regexp.MustCompile(`object cannot have its meaning" object="(AuthorizationPolicy mesh-system/all)" field=spec.rules`))
	await(t, "the status of a policy", func() bool {
		data, _ := os.ReadFile(filepath.Join(dir, "objects/status/control/authorizationpolicy.mesh-system.all.yaml"))
		return strings.Contains(string(data), "the policy is inert")
	})
	if err := os.Remove(filepath.Join(dir, "objects/p.yaml")); err != nil {
		t.Fatal(err)
	}
	await(t, "the status to go", func() bool {
		left, err := filepath.Glob(filepath.Join(dir, "objects/status/control/*.yaml"))
		return err == nil && len(left) == 0
	})

	signer := identity.NewCAClient(identity.CAConfig{Address: address, RootCAFile: roots, TokenFile: filepath.Join(dir, "token"), ClusterID: "Kubernetes"})
	id := mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	cert, err := signer.Sign(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if cert.Identity != id {
		t.Errorf("certificate of %s", cert.Identity)
	}
	id.ServiceAccount = "nobody"
	if _, err := signer.Sign(t.Context(), id); err == nil || !strings.Contains(err.Error(), "no pod with service account shop/nobody runs on node node1") {
		t.Errorf("an identity without a pod: %v", err)
	}
}

func put(t *testing.T, dir, rel, text string) {
	t.Helper()
	path := filepath.Join(dir, rel)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

// newToken writes jwks.json and the token of the node's proxy.
func newToken(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1"}}})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(map[string]any{
		"iss": "lab", "sub": "system:serviceaccount:istio-system:ztunnel", "aud": []string{"istio-ca"}, "exp": time.Now().Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{
			"namespace": "istio-system", "serviceaccount": map[string]string{"name": "ztunnel", "uid": "s"},
			"pod": map[string]string{"name": "ztunnel-node1", "uid": "u1"}, "node": map[string]string{"name": "node1", "uid": "n"},
		},
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "jwks.json", string(keys))
	put(t, dir, "token", token)
}

// logBuffer is a log that can be waited for.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) await(t *testing.T, re *regexp.Regexp) string {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for {
		l.mu.Lock()
		m := re.FindStringSubmatch(l.text.String())
		l.mu.Unlock()
		if m != nil {
			return m[1]
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("no %q in the log within 30 s:\n%s", re, l.text.String())
		}
	}
}

// await waits for what cannot be waited for otherwise.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// store notes the names that a client was sent.
type store struct {
	mu    sync.Mutex
	names map[string]bool
	wake  chan struct{}
}

func (s *store) Update(url string, up []xds.Resource, removed []string) (rejected []xds.Rejection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range up {
		var err error
		var w *mesh.Workload
		if url == xds.TypeAuthorization {
			_, err = xds.DecodeAuthorization(r.Value)
		} else {
			w, _, err = xds.DecodeAddress(r.Value)
		}
		if err != nil {
			rejected = append(rejected, xds.Rejection{Name: r.Name, Err: err})
		}
		s.names[r.Name] = true
		if w != nil {
			for _, p := range w.AuthorizationPolicies {
				s.names[r.Name+" names "+p] = true
			}
		}
	}
	for _, n := range removed {
		delete(s.names, n)
	}
	close(s.wake)
	s.wake = make(chan struct{})
	return rejected
}

func (s *store) await(t *testing.T, name string) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		found, wake := s.names[name], s.wake
		s.mu.Unlock()
		if found {
			return
		}
		select {
		case <-wake:
		case <-late:
			t.Fatalf("%s did not arrive within 30 s", name)
		}
	}
}
