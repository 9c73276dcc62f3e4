// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authapi "istio.io/api/security/v1alpha1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// caServer signs whatever it is asked for, or as instead of it, and remembers the latest call.
type caServer struct {
	authapi.UnimplementedIstioCertificateServiceServer
	a *Authority

	mu  sync.Mutex
	as  mesh.Identity
	md  metadata.MD
	req *authapi.IstioCertificateRequest
}

func (s *caServer) CreateCertificate(ctx context.Context, req *authapi.IstioCertificateRequest) (*authapi.IstioCertificateResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.md, _ = metadata.FromIncomingContext(ctx)
	s.req = req
	who, err := mesh.ParseIdentity(req.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	csr := []byte(req.GetCsr())
	if !s.as.IsZero() { // a server that makes a mistake: another identity, with a key of its own
		who = s.as
		if _, csr, err = newRequest(who); err != nil {
			return nil, err
		}
	}
	chain, err := s.a.SignCSR(csr, who, time.Duration(req.GetValidityDuration())*time.Second)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	rsp := &authapi.IstioCertificateResponse{}
	for _, c := range chain {
		rsp.CertChain = append(rsp.CertChain, string(c))
	}
	return rsp, nil
}

// serveCA returns the server, its address, and a file with its root.
func serveCA(t *testing.T) (s *caServer, addr, rootFile string) {
	t.Helper()
	s = &caServer{a: newAuthority(t)}
	l := listenAt(t, "127.0.0.1:0")
	s.serve(t, l)
	rootFile = filepath.Join(t.TempDir(), "root-cert.pem")
	writeFile(t, rootFile, s.a.RootsPEM())
	return s, l.Addr().String(), rootFile
}

func listenAt(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve serves on l until the test ends or the returned function is called.
func (s *caServer) serve(t *testing.T, l net.Listener) (stop func()) {
	t.Helper()
	cert, err := s.a.ServingCertificate([]string{"istiod.istio-system.svc"})
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}})))
	authapi.RegisterIstioCertificateServiceServer(srv, s)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	stop = func() { srv.Stop(); <-done }
	t.Cleanup(stop)
	return stop
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestClientOfTheAuthority(t *testing.T) {
	s, addr, root := serveCA(t)
	token := filepath.Join(t.TempDir(), "token")
	writeFile(t, token, []byte("first\n"))
	c := NewCAClient(CAConfig{
		Address: "https://" + addr, RootCAFile: root, TokenFile: token, ClusterID: "Kubernetes", TTL: time.Hour,
		ServerName: "istiod.istio-system.svc", Headers: map[string]string{"x-lab": "yes"},
	})
	web := id("shop", "web")
	cert, err := c.Sign(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	if cert.Identity != web || cert.Leaf.URIs[0].String() != web.String() {
		t.Errorf("certificate for %s", cert.Identity)
	}
	if s.req.GetValidityDuration() != 3600 {
		t.Errorf("asked for %d s", s.req.GetValidityDuration())
	}
	writeFile(t, token, []byte("second"))
	if _, err := c.Sign(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{"authorization": "Bearer second", "clusterid": "Kubernetes", "x-lab": "yes"} {
		if got := s.md.Get(k); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
	if c.(*caClient).conn != nil {
		t.Error("holds a connection between calls")
	}
	s.as = id("shop", "cart")
	if _, err := c.Sign(t.Context(), web); err == nil || !strings.Contains(err.Error(), "not for "+web.String()) {
		t.Errorf("another identity's certificate: %v", err)
	}
}

func TestClientChecksTheAuthority(t *testing.T) {
	_, addr, root := serveCA(t)
	foreign := filepath.Join(t.TempDir(), "root.pem")
	writeFile(t, foreign, newAuthority(t).RootsPEM())
	for _, tc := range []struct {
		name string
		cfg  CAConfig
		want string
	}{
		{"another root", CAConfig{RootCAFile: foreign, ServerName: "istiod.istio-system.svc"}, "unknown authority"},
		{"another name", CAConfig{RootCAFile: root}, "127.0.0.1"},
		{"no root file", CAConfig{RootCAFile: root + "x", ServerName: "istiod.istio-system.svc"}, "no such file"},
		{"no token file", CAConfig{RootCAFile: root, TokenFile: root + "x", ServerName: "istiod.istio-system.svc"}, "read token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.Address = addr
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := NewCAClient(tc.cfg).Sign(ctx, id("shop", "web"))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestClientReadsARootThatWasReplaced(t *testing.T) {
	s, addr, root := serveCA(t)
	c := NewCAClient(CAConfig{Address: addr, RootCAFile: root, ServerName: "istiod.istio-system.svc"})
	writeFile(t, root, newAuthority(t).RootsPEM())
	if _, err := c.Sign(t.Context(), id("shop", "web")); err == nil {
		t.Fatal("accepted by a root that is not in the file")
	}
	writeFile(t, root, s.a.RootsPEM())
	if _, err := c.Sign(t.Context(), id("shop", "web")); err != nil {
		t.Fatal(err)
	}
}

func TestFailedFetchesFollowTheReturnOfTheAuthority(t *testing.T) {
	s := &caServer{a: newAuthority(t)}
	l := listenAt(t, "127.0.0.1:0")
	addr := l.Addr().String()
	stop := s.serve(t, l)
	root := filepath.Join(t.TempDir(), "root.pem")
	writeFile(t, root, s.a.RootsPEM())
	client := NewCAClient(CAConfig{Address: addr, RootCAFile: root, ServerName: "istiod.istio-system.svc"})
	c := NewCache(CacheConfig{Signer: client, Log: quiet, BackoffMin: time.Hour, BackoffMax: time.Hour, BackoffDemand: time.Hour})
	follow(t, func(ctx context.Context) { _ = c.Run(ctx) })
	get := func(account string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := c.Get(ctx, id("shop", account))
		return err
	}
	if err := get("web"); err != nil {
		t.Fatal("control:", err)
	}
	stop()
	c.Prefetch(id("shop", "cart")) // whose next attempt would be in an hour
	if err := get("cart"); err == nil {
		t.Fatal("control: certified by nobody")
	}
	s.serve(t, listenAt(t, addr))
	if err := get("cart"); err != nil {
		t.Error("the authority is back, yet:", err)
	}
	eventually(t, "the connection is given back", func() bool { return !client.(*caClient).connected() })
}

func (c *caClient) connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn != nil
}

func TestRefusalsAreNotAwaited(t *testing.T) {
	_, addr, root := serveCA(t)
	c := NewCAClient(CAConfig{Address: addr, RootCAFile: root, ServerName: "istiod.istio-system.svc"}).(*caClient)
	if err := c.Await(t.Context(), status.Error(codes.PermissionDenied, "no")); err == nil {
		t.Error("waits after a refusal")
	}
	if err := c.Await(t.Context(), status.Error(codes.Unavailable, "gone")); err != nil {
		t.Error("control:", err)
	}
}
