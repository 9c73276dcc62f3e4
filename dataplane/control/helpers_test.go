// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// memory is a source whose objects a test sets.
type memory struct {
	mu       sync.Mutex
	objects  *source.Objects
	changed  chan struct{}
	problems []source.Problem
}

func newMemory(objs ...source.Object) *memory {
	return &memory{objects: objectsOf(objs...), changed: make(chan struct{})}
}

func (m *memory) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (m *memory) Ready() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func (m *memory) Load() *source.Objects {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.objects
}

func (m *memory) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *memory) Problems() []source.Problem { return m.problems }

func (m *memory) set(objs ...source.Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects = objectsOf(objs...)
	close(m.changed)
	m.changed = make(chan struct{})
}

// issuer makes service-account tokens as Kubernetes does.
type issuer struct {
	key  *ecdsa.PrivateKey
	path string // of its JWKS
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key, path: filepath.Join(t.TempDir(), "jwks.json")}
	data, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(i.path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

// claims are those of a token for a pod's service account.
func claims(namespace, account, pod, uid, node string) map[string]any {
	k8s := map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": account, "uid": "sa"}}
	if pod != "" {
		k8s["pod"] = map[string]any{"name": pod, "uid": uid}
	}
	if node != "" {
		k8s["node"] = map[string]any{"name": node, "uid": "n"}
	}
	now := time.Now()
	return map[string]any{
		"iss": "https://kubernetes.default.svc.cluster.local", "sub": "system:serviceaccount:" + namespace + ":" + account,
		"aud": []string{"istio-ca"}, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(), "kubernetes.io": k8s,
	}
}

func (i *issuer) sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	key := jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: "k1"}}
	signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// plane is a control plane that runs on loopback until the test ends.
type plane struct {
	*Server
	source *memory
	issuer *issuer
	conn   *grpc.ClientConn
	roots  *x509.CertPool
	caDir  string
	stop   func() // ends it, and waits
}

func startPlane(t *testing.T, objs ...source.Object) *plane {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	caDir := filepath.Join(t.TempDir(), "ca")
	authority, err := identity.LoadOrCreateAuthority(caDir, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{source: newMemory(objs...), issuer: newIssuer(t), roots: x509.NewCertPool(), caDir: caDir}
	p.roots.AppendCertsFromPEM(authority.RootsPEM())
	p.Server, err = New(Config{
		Source: p.source, Authority: authority, Authenticator: NewJWKS(p.issuer.path, ""), Listener: listener,
		ServingNames: []string{"istiod.istio-system.svc"}, TrustedAccounts: []string{"istio-system/ztunnel"},
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	p.conn = dial(t, listener.Addr().String(), p.roots)
	t.Cleanup(p.stop)
	return p
}

func dial(t *testing.T, addr string, roots *x509.CertPool) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: roots, ServerName: "istiod.istio-system.svc", MinVersion: tls.VersionTLS12,
	})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (p *plane) token(t *testing.T) string {
	return p.issuer.sign(t, claims("istio-system", "ztunnel", "", "", ""))
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "clusterid", "Kubernetes")
}

// client is a raw delta client.
type client struct {
	t      *testing.T
	wire   discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	cancel func()
}

func (p *plane) subscribe(t *testing.T, r *discovery.DeltaDiscoveryRequest) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	wire, err := discovery.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(withToken(ctx, p.token(t)))
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, wire: wire, cancel: cancel}
	r.Node = &core.Node{Id: "ztunnel~10.0.0.1~ztunnel-node1.istio-system~istio-system.svc.cluster.local"}
	c.send(r)
	return c
}

func (c *client) send(r *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	if err := c.wire.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

// receive takes the next response, acknowledges it and says what was in it: resources, then removed ones with a minus.
func (c *client) receive() (*discovery.DeltaDiscoveryResponse, string) {
	c.t.Helper()
	r, err := c.wire.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
	return r, summary(r)
}

func summary(r *discovery.DeltaDiscoveryResponse) string {
	var up, removed []string
	for _, res := range r.GetResources() {
		up = append(up, strings.TrimPrefix(res.GetName(), "Kubernetes//Pod/"))
	}
	for _, n := range r.GetRemovedResources() {
		removed = append(removed, "-"+strings.TrimPrefix(n, "Kubernetes//Pod/"))
	}
	slices.Sort(up)
	slices.Sort(removed)
	return strings.Join(append(up, removed...), " ")
}

func versions(r *discovery.DeltaDiscoveryResponse) map[string]string {
	out := map[string]string{}
	for _, res := range r.GetResources() {
		out[res.GetName()] = res.GetVersion()
	}
	return out
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
