// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// ads is a control plane by Envoy's types; a test plays each stream by hand.
type ads struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	streams chan *adsStream
	addr    string
}

type adsStream struct {
	t    *testing.T
	s    discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	md   metadata.MD
	end  chan error // what the stream ends with
	reqs chan *discovery.DeltaDiscoveryRequest
}

func (a *ads) DeltaAggregatedResources(s discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(s.Context())
	st := &adsStream{s: s, md: md, end: make(chan error, 1), reqs: make(chan *discovery.DeltaDiscoveryRequest, 100)}
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			st.reqs <- r
		}
	})
	a.streams <- st
	select {
	case err := <-st.end:
		return err
	case <-s.Context().Done():
		reader.Wait()
		return nil
	}
}

func (a *ads) next(t *testing.T) *adsStream {
	t.Helper()
	select {
	case s := <-a.streams:
		s.t = t
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("no stream")
		return nil
	}
}

func (s *adsStream) request() *discovery.DeltaDiscoveryRequest {
	s.t.Helper()
	select {
	case r := <-s.reqs:
		return r
	case <-time.After(10 * time.Second):
		s.t.Fatal("no request")
		return nil
	}
}

func (s *adsStream) send(typeURL, nonce string, removed []string, nameVersionValue ...string) {
	s.t.Helper()
	r := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, RemovedResources: removed}
	for n := range slices.Chunk(nameVersionValue, 3) {
		r.Resources = append(r.Resources, &discovery.Resource{Name: n[0], Version: n[1], Resource: &anypb.Any{TypeUrl: typeURL, Value: []byte(n[2])}})
	}
	if err := s.s.Send(r); err != nil {
		s.t.Fatal(err)
	}
}

// serve starts a control plane on a free port, with options that a server of ours would have.
func serve(t *testing.T, opts ...grpc.ServerOption) *ads {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &ads{streams: make(chan *adsStream, 10), addr: l.Addr().String()}
	srv := grpc.NewServer(append(ServerOptions(), opts...)...)
	discovery.RegisterAggregatedDiscoveryServiceServer(srv, a)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	return a
}

// collector is a Handler that keeps what it gets, and refuses names that begin with "bad".
type collector struct {
	mu    sync.Mutex
	held  map[string]string
	calls int
}

func (c *collector) Update(typeURL string, up []Resource, removed []string) (rejected []Rejection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.held == nil {
		c.held = map[string]string{}
	}
	short := typeURL[strings.LastIndex(typeURL, ".")+1:] + " "
	for _, r := range up {
		if strings.HasPrefix(string(r.Value), "bad") {
			rejected = append(rejected, Rejection{r.Name, errors.New("is " + string(r.Value))})
			continue
		}
		c.held[short+r.Name] = string(r.Value)
	}
	for _, name := range removed {
		delete(c.held, short+name)
	}
	return rejected
}

func (c *collector) expect(t *testing.T, want map[string]string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if diff := cmp.Diff(want, c.held); diff != "" {
		t.Error(diff)
	}
}

// start runs a client until the test ends.
func start(t *testing.T, cfg ClientConfig) *Client {
	t.Helper()
	cfg.Log, cfg.BackoffMin, cfg.BackoffMax = quiet, time.Millisecond, 20*time.Millisecond
	if cfg.Types == nil {
		cfg.Types = []string{TypeAddress, TypeAuthorization}
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, c)
	return c
}

func run(t *testing.T, c *Client) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// subscribed is a client of a control plane and the stream between them, on which both types were asked for.
func subscribed(t *testing.T) (*ads, *collector, *adsStream) {
	t.Helper()
	a, h := serve(t), &collector{}
	start(t, ClientConfig{Address: "http://" + a.addr, Handler: h})
	s := a.next(t)
	s.request()
	s.request()
	return a, h, s
}

func isReady(c *Client) bool {
	select {
	case <-c.Ready():
		return true
	default:
		return false
	}
}

func TestStreamFromSubscriptionToReadiness(t *testing.T) {
	a, h := serve(t), &collector{}
	var mu sync.Mutex
	messages := map[string]int{}
	c := start(t, ClientConfig{
		Address: "http://" + a.addr, Handler: h, ClusterID: "Kubernetes", Headers: map[string]string{"x-lab": "yes"},
		Node: Node{ID: "ztunnel~1.2.3.4~z.ns~ns.svc.cluster.local", Metadata: map[string]any{"NODE_NAME": "node1"}},
		Metrics: Metrics{Message: func(typeURL string, bytes int) {
			mu.Lock()
			defer mu.Unlock()
			messages[typeURL] += bytes
		}},
	})
	s := a.next(t)
	if got := s.md.Get("clusterid"); !slices.Equal(got, []string{"Kubernetes"}) || !slices.Equal(s.md.Get("x-lab"), []string{"yes"}) {
		t.Errorf("metadata %v", s.md)
	}
	for _, typeURL := range []string{TypeAddress, TypeAuthorization} {
		r := s.request()
		if r.GetTypeUrl() != typeURL || len(r.GetResourceNamesSubscribe()) != 0 || len(r.GetInitialResourceVersions()) != 0 || r.GetResponseNonce() != "" {
			t.Errorf("first request %v, want a wildcard of %s", r, typeURL)
		}
		if r.GetNode().GetId() != "ztunnel~1.2.3.4~z.ns~ns.svc.cluster.local" || r.GetNode().GetMetadata().GetFields()["NODE_NAME"].GetStringValue() != "node1" {
			t.Errorf("node %v", r.GetNode())
		}
	}
	s.send(TypeAddress, "n1", nil, "a", "1", "A", "b", "1", "B")
	if r := s.request(); r.GetResponseNonce() != "n1" || r.GetErrorDetail() != nil || r.GetNode() != nil || r.GetTypeUrl() != TypeAddress {
		t.Errorf("acknowledged with %v", r)
	}
	if isReady(c) {
		t.Error("ready before the second type was answered")
	}
	s.send(TypeAuthorization, "n2", nil) // nothing is an answer
	if r := s.request(); r.GetResponseNonce() != "n2" || r.GetErrorDetail() != nil {
		t.Errorf("acknowledged with %v", r)
	}
	if !isReady(c) {
		t.Error("not ready")
	}
	s.send(TypeAddress, "n3", []string{"a", "unknown"}, "b", "2", "B2")
	s.request()
	h.expect(t, map[string]string{"Address b": "B2"})
	mu.Lock()
	defer mu.Unlock()
	if messages[TypeAddress] == 0 || messages[TypeAuthorization] == 0 {
		t.Errorf("counted %v", messages)
	}
}

func TestRefusedResourcesAreNamed(t *testing.T) {
	a, h, s := subscribed(t)
	s.send(TypeAddress, "n1", nil, "a", "1", "A", "b", "1", "bad one", "c", "1", "C", "d", "1", "bad two")
	r := s.request()
	if r.GetResponseNonce() != "n1" || r.GetErrorDetail().GetCode() != int32(codes.InvalidArgument) {
		t.Fatalf("answered with %v", r)
	}
	if got, want := r.GetErrorDetail().GetMessage(), "b: is bad one; d: is bad two"; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
	h.expect(t, map[string]string{"Address a": "A", "Address c": "C"})
	// A bad version of something good: the good one stays held.
	s.send(TypeAddress, "n2", nil, "a", "2", "bad")
	s.request()
	h.expect(t, map[string]string{"Address a": "A", "Address c": "C"})
	s.end <- status.Error(codes.Unavailable, "going away")
	s = a.next(t)
	want := map[string]string{"a": "1", "c": "1"}
	if diff := cmp.Diff(want, s.request().GetInitialResourceVersions()); diff != "" {
		t.Error("held on reconnect:", diff)
	}
}

func TestResourcesThatDoNotBelong(t *testing.T) {
	_, h, s := subscribed(t)
	s.send(TypeWorkload, "n1", nil, "a", "1", "A")
	if r := s.request(); !strings.Contains(r.GetErrorDetail().GetMessage(), "did not subscribe") || r.GetTypeUrl() != TypeWorkload {
		t.Errorf("answered with %v", r)
	}
	if err := s.s.Send(&discovery.DeltaDiscoveryResponse{TypeUrl: TypeAddress, Nonce: "n2", Resources: []*discovery.Resource{
		{Name: "a", Version: "1", Resource: &anypb.Any{TypeUrl: TypeAuthorization}},
		{Name: "b", Version: "1"},
		{Name: "c", Version: "1", Resource: &anypb.Any{TypeUrl: TypeAddress, Value: []byte("C")}},
	}}); err != nil {
		t.Fatal(err)
	}
	got := s.request().GetErrorDetail().GetMessage()
	for _, want := range []string{"a: a \"" + TypeAuthorization, "b: no value"} {
		if !strings.Contains(got, want) {
			t.Errorf("message %q misses %q", got, want)
		}
	}
	h.expect(t, map[string]string{"Address c": "C"})
}

func TestReconnectTellsWhatIsHeld(t *testing.T) {
	a, h := serve(t), &collector{}
	reasons := make(chan string, 10)
	c := start(t, ClientConfig{Address: "http://" + a.addr, Handler: h, Metrics: Metrics{Terminated: func(r string) { reasons <- r }}})
	s := a.next(t)
	s.request()
	s.request()
	s.send(TypeAddress, "n1", nil, "a", "1", "A", "b", "7", "B", "c", "1", "C")
	s.request()
	s.send(TypeAddress, "n2", []string{"c"})
	s.request()
	for _, tc := range []struct {
		end  error
		want string
	}{
		{status.Error(codes.Unavailable, "restart"), "Reconnect"},
		{nil, "Complete"},
		{status.Error(codes.PermissionDenied, "no"), "Error"},
	} {
		s.end <- tc.end
		if got := <-reasons; got != tc.want {
			t.Errorf("after %v: reason %q, want %q", tc.end, got, tc.want)
		}
		s = a.next(t)
		r := s.request()
		if diff := cmp.Diff(map[string]string{"a": "1", "b": "7"}, r.GetInitialResourceVersions()); diff != "" || r.GetNode() == nil {
			t.Errorf("first request %v: %s", r, diff)
		}
		s.request()
	}
	h.expect(t, map[string]string{"Address a": "A", "Address b": "B"})
	if isReady(c) {
		t.Error("ready though policies were never answered")
	}
	s.send(TypeAuthorization, "n", nil)
	<-c.Ready()
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	reasons := make(chan string, 1000)
	start(t, ClientConfig{Address: "http://" + l.Addr().String(), Handler: &collector{}, Metrics: Metrics{Terminated: func(r string) { reasons <- r }}})
	for range 3 {
		if got := <-reasons; got != "ConnectionError" {
			t.Errorf("reason %q", got)
		}
	}
}

func TestOnDemand(t *testing.T) {
	a, h := serve(t), &collector{}
	c := start(t, ClientConfig{Address: "http://" + a.addr, Handler: h, OnDemand: true})
	s := a.next(t)
	if r := s.request(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{"*"}) || !slices.Equal(r.GetResourceNamesUnsubscribe(), []string{"*"}) {
		t.Errorf("first request %v", r)
	}
	if r := s.request(); r.GetTypeUrl() != TypeAuthorization || len(r.GetResourceNamesSubscribe()) != 0 {
		t.Errorf("policies are not on demand: %v", r)
	}
	c.Demand("/10.0.0.1", "/10.0.0.2")
	if r := s.request(); r.GetTypeUrl() != TypeAddress || !slices.Equal(r.GetResourceNamesSubscribe(), []string{"/10.0.0.1", "/10.0.0.2"}) {
		t.Errorf("demanded with %v", r)
	}
	c.Demand("/10.0.0.2", "/10.0.0.3")
	if r := s.request(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{"/10.0.0.3"}) {
		t.Errorf("demanded with %v", r)
	}
	s.end <- nil
	s = a.next(t)
	if r := s.request(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{"*", "/10.0.0.1", "/10.0.0.2", "/10.0.0.3"}) {
		t.Errorf("first request %v", r)
	}
}

func TestLargeResponse(t *testing.T) {
	_, h, s := subscribed(t)
	var list []string
	want := map[string]string{}
	for i := range 2000 {
		name := "w" + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + big.NewInt(int64(i)).String()
		value := strings.Repeat(name, 400)
		list = append(list, name, "1", value)
		want["Address "+name] = value
	}
	s.send(TypeAddress, "n1", nil, list...) // about 6 MB: more than gRPC allows by default
	if r := s.request(); r.GetErrorDetail() != nil {
		t.Fatal(r)
	}
	h.expect(t, want)
}

// selfSigned makes a certificate for name and a file with it.
func selfSigned(t *testing.T, name string) (cert tls.Certificate, file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "root.pem")
	write(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTokenAndRootAreReadAnew(t *testing.T) {
	cert, root := selfSigned(t, "istiod.istio-system.svc")
	_, foreign := selfSigned(t, "istiod.istio-system.svc")
	a := serve(t, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}})))
	good, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, string(bad))
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, "first\n")
	reasons := make(chan string, 1000)
	start(t, ClientConfig{
		Address: "https://" + a.addr, RootCAFile: root, TokenFile: token, ServerName: "istiod.istio-system.svc", Handler: &collector{},
		Metrics: Metrics{Terminated: func(r string) {
			select {
			case reasons <- r:
			default:
			}
		}},
	})
	if got := <-reasons; got != "ConnectionError" {
		t.Errorf("with another root: %q", got)
	}
	write(t, root, string(good))
	s := a.next(t)
	if got := s.md.Get("authorization"); !slices.Equal(got, []string{"Bearer first"}) {
		t.Errorf("token %q", got)
	}
	write(t, token, "second")
	s.end <- nil
	if got := a.next(t).md.Get("authorization"); !slices.Equal(got, []string{"Bearer second"}) {
		t.Errorf("token %q", got)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	for name, cfg := range map[string]ClientConfig{
		"no address": {Handler: &collector{}, Types: []string{TypeAddress}},
		"no handler": {Address: "a:1", Types: []string{TypeAddress}},
		"no types":   {Address: "a:1", Handler: &collector{}},
		"metadata":   {Address: "a:1", Handler: &collector{}, Types: []string{TypeAddress}, Node: Node{Metadata: map[string]any{"f": make(chan int)}}},
	} {
		if _, err := NewClient(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestManyRefusalsAreCutShort(t *testing.T) {
	var list []Rejection
	for range 300 {
		list = append(list, Rejection{"n\xff", errors.New("e")})
	}
	got := joinRejections(list)
	if !strings.HasSuffix(got, "; and 200 more") || !strings.HasPrefix(got, "n?: e; ") {
		t.Errorf("%.40q … %q", got, got[len(got)-20:])
	}
}

// Our codec also serves: a server that uses it for everything understands our client and other services' messages.
func TestServerWithOurCodec(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *DeltaDiscoveryRequest, 10)
	handler := func(_ any, s grpc.ServerStream) error {
		for i := 0; ; i++ {
			r := &DeltaDiscoveryRequest{}
			if err := s.RecvMsg(r); err != nil {
				return nil
			}
			got <- r
			if i == 0 {
				if err := s.SendMsg(&DeltaDiscoveryResponse{TypeURL: TypeAddress, Nonce: "n", Resources: []Resource{{Name: "a", Version: "1", Value: []byte("A")}}}); err != nil {
					return err
				}
			}
		}
	}
	srv := grpc.NewServer(append(ServerOptions(), grpc.ForceServerCodecV2(Codec()), grpc.UnknownServiceHandler(handler))...)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	defer func() { srv.Stop(); <-done }()
	h := &collector{}
	start(t, ClientConfig{Address: "http://" + l.Addr().String(), Handler: h, Types: []string{TypeAddress}, Node: Node{ID: "me"}})
	if r := <-got; r.Node == nil || r.Node.ID != "me" || r.TypeURL != TypeAddress {
		t.Errorf("first request %+v", r)
	}
	if r := <-got; r.ResponseNonce != "n" || r.ErrorDetail != nil {
		t.Errorf("acknowledged with %+v", r)
	}
	h.expect(t, map[string]string{"Address a": "A"})
}
