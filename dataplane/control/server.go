// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	security "istio.io/api/security/v1alpha1"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// Config is what a control plane needs. Source, Authority, Authenticator and Listener must be set.
type Config struct {
	Settings
	Source        source.Source // run by its owner, not by the server
	Authority     *identity.Authority
	AuthorityDir  string // where its files are; "" is a Secret of the cluster
	Authenticator Authenticator
	Listener      net.Listener // for TLS; closed by Run

	ServingNames    []string      // DNS names and IP addresses in the serving certificate
	TrustedAccounts []string      // "namespace/service account" of node proxies
	CertTTL         time.Duration // the longest life of a workload certificate; 0 means 24 h
	DrainTimeout    time.Duration // how long calls may take to end at a stop; 0 means 3 s
	Statuses        Statuses      // told the conditions of policies and services; may be nil
	KeyLog          io.Writer     // receives the secrets of every TLS connection in NSS key-log format, for labs alone; may be nil
	Log             *slog.Logger

	Version string          // for the debug pages
	Process admin.Process   // the same
	Metrics func() []Metric // what else /metrics tells; may be nil
}

// Server is a control plane.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	cfg      Config
	settings Settings // with defaults
	log      *slog.Logger
	views    *views
	metrics  metrics
	serving  servingCertificate
	ready    *admin.Readiness
	issued   issued
	quit     chan struct{}  // closed when Run stops
	readers  sync.WaitGroup // one for each open stream

	mu      sync.Mutex // guards streams
	streams map[*stream]bool
}

// New makes a control plane; it does no I/O.
func New(cfg Config) (*Server, error) {
	if cfg.Source == nil || cfg.Authority == nil || cfg.Authenticator == nil || cfg.Listener == nil {
		return nil, errors.New("make control plane: source, authority, authenticator and listener are needed")
	}
	cfg.CertTTL = cmp.Or(cfg.CertTTL, 24*time.Hour)
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, 3*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg: cfg, settings: cfg.Settings.withDefaults(), log: cfg.Log, views: newViews(), quit: make(chan struct{}),
		ready:   admin.NewReadiness("objects"),
		serving: servingCertificate{authority: cfg.Authority, names: cfg.ServingNames}, issued: issued{started: time.Now()},
		streams: map[*stream]bool{},
	}
	return s, nil
}

// Run serves until ctx ends, then ends streams, waits for calls until DrainTimeout and returns nil. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	rpc := s.grpc()
	g.Go(func() error { return s.follow(ctx) })
	g.Go(func() error {
		if err := rpc.Serve(s.cfg.Listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve %s: %w", s.cfg.Listener.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		close(s.quit)
		cut := time.AfterFunc(s.cfg.DrainTimeout, rpc.Stop)
		rpc.GracefulStop()
		cut.Stop()
		return nil
	})
	err := g.Wait()
	s.readers.Wait()
	return err
}

func (s *Server) grpc() *grpc.Server {
	rpc := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, KeyLogWriter: s.cfg.KeyLog,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.serving.get(time.Now()) },
		})),
		// Proxies ping every 30 s; gRPC's own default takes that for an attack.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// A proxy that comes back names every resource that it holds.
		grpc.MaxRecvMsgSize(64<<20),
	)
	discovery.RegisterAggregatedDiscoveryServiceServer(rpc, s)
	security.RegisterIstioCertificateServiceServer(rpc, &certificates{server: s})
	return rpc
}

// DeltaAggregatedResources implements the discovery service.
func (s *Server) DeltaAggregatedResources(wire deltaStream) error {
	ctx := wire.Context()
	caller, err := s.authenticate(ctx)
	if err != nil {
		s.log.Warn("discovery stream refused: who asks is not known", "remote", remote(ctx), "err", err)
		return status.Error(codes.Unauthenticated, err.Error())
	}
	st := &stream{
		server: s, wire: wire, subs: map[string]*subscription{}, log: s.log.With("proxy", caller.Account(), "remote", remote(ctx)),
		proxy: Proxy{Account: caller.Account(), Remote: remote(ctx), Since: time.Now(), Types: map[string]TypeState{}},
	}
	s.mu.Lock()
	s.streams[st] = true
	s.mu.Unlock()
	err = st.serve(ctx, s.quit)
	s.mu.Lock()
	delete(s.streams, st)
	s.mu.Unlock()
	st.log.Info("proxy disconnected", "reason", err)
	return err
}

func (s *Server) authenticate(ctx context.Context) (Caller, error) {
	token, err := bearer(ctx)
	if err != nil {
		return Caller{}, err
	}
	return s.cfg.Authenticator.Authenticate(ctx, token)
}

// Proxies lists the connected clients, the oldest first.
func (s *Server) Proxies() []Proxy {
	s.mu.Lock()
	out := make([]Proxy, 0, len(s.streams))
	for st := range s.streams {
		out = append(out, st.describe())
	}
	s.mu.Unlock()
	slices.SortFunc(out, func(a, b Proxy) int { return a.Since.Compare(b.Since) })
	return out
}

// Snapshot is the mesh as it is served now; nil before it was compiled once.
func (s *Server) Snapshot() *Snapshot {
	if v := s.views.load(); v != nil {
		return v.snapshot
	}
	return nil
}

// Problems lists what is wrong with the objects: single ones first, then what they mean together.
func (s *Server) Problems() []source.Problem {
	out := slices.Clone(s.cfg.Source.Problems())
	if v := s.views.load(); v != nil {
		out = append(out, v.snapshot.Problems...)
		out = append(out, v.problems...)
	}
	return out
}

// servingCertificate is issued when first needed, and again when half of its life is over or the authority has changed.
type servingCertificate struct {
	authority *identity.Authority
	names     []string

	mu      sync.Mutex // guards what follows
	cert    *tls.Certificate
	version int // of the authority
}

func (c *servingCertificate) get(now time.Time) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	version := c.authority.State().Version
	if c.cert != nil && c.version == version {
		leaf := c.cert.Leaf
		if now.Before(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)) {
			return c.cert, nil
		}
	}
	cert, err := c.authority.ServingCertificate(c.names)
	if err != nil {
		return nil, err
	}
	c.cert, c.version = &cert, version
	return c.cert, nil
}
