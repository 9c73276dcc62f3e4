// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	authapi "istio.io/api/security/v1alpha1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// defaultTTL is the lifetime asked for, and the one that Istio's authority grants.
const defaultTTL = 24 * time.Hour

// CAConfig says where the authority is and how to speak to it.
type CAConfig struct {
	// Address is https://host:port, host:port (the same), or http://host:port, which is plain text and sends no token.
	Address string
	// RootCAFile is what the authority's certificate must lead to; it is read anew for every connection. "" means the
	// system's roots.
	RootCAFile string
	// TokenFile holds the service-account token; it is read anew for every call. "" sends none.
	TokenFile string
	// ClusterID is sent with every call.
	ClusterID string
	// TTL is the lifetime to ask for; 0 means 24 h.
	TTL time.Duration
	// ServerName replaces the address's host in the check of the authority's certificate, if set.
	ServerName string
	// Headers are added to every call.
	Headers map[string]string
}

// connectParams have a lost authority looked for about once a second: a packet each, which a connection refused or a silent
// address costs nobody else.
var connectParams = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
	MinConnectTimeout: 3 * time.Second,
}

// caClient holds a connection only while calls are in flight or the authority is awaited: certificates are asked for in bursts,
// hours apart.
type caClient struct {
	cfg    CAConfig
	target string
	plain  bool

	mu    sync.Mutex
	conn  *grpc.ClientConn // guarded by mu
	users int              // guarded by mu
}

// NewCAClient is a Signer that asks an authority over gRPC (IstioCertificateService) for the node's workloads, with the
// node's own token. It does no I/O until the first call.
func NewCAClient(cfg CAConfig) Signer {
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	c := &caClient{cfg: cfg}
	c.target, c.plain = strings.CutPrefix(cfg.Address, "http://")
	c.target = strings.TrimSuffix(strings.TrimPrefix(c.target, "https://"), "/")
	return c
}

// Sign makes a key, has it certified for id and checks the answer: it must be for id, for this key, and end at a root.
func (c *caClient) Sign(ctx context.Context, id mesh.Identity) (*Certificate, error) {
	key, csr, err := newRequest(id)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	conn, err := c.acquire()
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	defer c.release()
	if ctx, err = c.outgoing(ctx); err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	rsp, err := authapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &authapi.IstioCertificateRequest{
		Csr: string(csr), ValidityDuration: int64(c.cfg.TTL / time.Second),
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(id.String())}},
	})
	if err != nil {
		return nil, fmt.Errorf("sign %s: ask %s: %w", id, c.cfg.Address, err)
	}
	chain := make([][]byte, len(rsp.GetCertChain()))
	for i, c := range rsp.GetCertChain() {
		chain[i] = []byte(c)
	}
	cert, err := newCertificate(id, key, chain)
	if err != nil {
		return nil, fmt.Errorf("sign %s: answer of %s: %w", id, c.cfg.Address, err)
	}
	return cert, nil
}

// Await implements Awaiter. A call that failed because there was no connection, or none of the authority's answers came,
// is worth a wait for the next connection; a refusal is not.
func (c *caClient) Await(ctx context.Context, failure error) error {
	switch status.Code(failure) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
	default:
		return failure
	}
	conn, err := c.acquire()
	if err != nil {
		return err
	}
	defer c.release()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.Idle:
			conn.Connect()
		case connectivity.Shutdown:
			return failure
		}
		if !conn.WaitForStateChange(ctx, state) {
			return ctx.Err()
		}
	}
}

func (c *caClient) outgoing(ctx context.Context) (context.Context, error) {
	md := metadata.MD{}
	for k, v := range c.cfg.Headers {
		md.Set(k, v)
	}
	if c.cfg.ClusterID != "" {
		md.Set("clusterid", c.cfg.ClusterID)
	}
	if c.cfg.TokenFile != "" && !c.plain {
		token, err := os.ReadFile(c.cfg.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read token: %w", err)
		}
		md.Set("authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	return metadata.NewOutgoingContext(ctx, md), nil
}

func (c *caClient) acquire() (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		creds := insecure.NewCredentials()
		if !c.plain {
			creds = credentials.NewTLS(c.tls())
		}
		conn, err := grpc.NewClient("passthrough:///"+c.target, grpc.WithTransportCredentials(creds),
			grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithConnectParams(connectParams))
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", c.cfg.Address, err)
		}
		c.conn = conn
	}
	c.users++
	return c.conn, nil
}

func (c *caClient) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users--; c.users == 0 {
		c.conn.Close()
		c.conn = nil
	}
}

// tls verifies the server by hand, so that a root that was replaced on disk is in force for the next connection.
func (c *caClient) tls() *tls.Config {
	name := c.cfg.ServerName
	if name == "" {
		name = c.target
		if host, _, err := net.SplitHostPort(c.target); err == nil {
			name = host
		}
	}
	return &tls.Config{
		ServerName: name, MinVersion: tls.VersionTLS12, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			opts := x509.VerifyOptions{DNSName: name, Intermediates: x509.NewCertPool()}
			if c.cfg.RootCAFile != "" {
				data, err := os.ReadFile(c.cfg.RootCAFile)
				if err != nil {
					return fmt.Errorf("read root certificate: %w", err)
				}
				opts.Roots = x509.NewCertPool()
				if !opts.Roots.AppendCertsFromPEM(data) {
					return fmt.Errorf("read root certificate: none in %s", c.cfg.RootCAFile)
				}
			}
			if len(cs.PeerCertificates) == 0 {
				return errors.New("server presented no certificate")
			}
			for _, cert := range cs.PeerCertificates[1:] {
				opts.Intermediates.AddCert(cert)
			}
			_, err := cs.PeerCertificates[0].Verify(opts)
			return err
		},
	}
}
