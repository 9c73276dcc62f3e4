// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

// errConnect says that there never was a stream.
var errConnect = errors.New("connect to control plane")

type stream struct{ grpc.ClientStream }

func (s *stream) send(r *DeltaDiscoveryRequest) error { return s.SendMsg(r) }

// runStream opens a stream and serves it until it breaks, which is the error. It reports whether the server answered.
func (c *Client) runStream(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.dial()
	if err != nil {
		return false, fmt.Errorf("%w: %w", errConnect, err)
	}
	defer conn.Close()
	s, err := c.open(ctx, conn)
	if err != nil {
		return false, fmt.Errorf("%w: %w", errConnect, err)
	}
	defer c.setCurrent(nil)
	if err := c.subscribe(s); err != nil {
		return false, streamError(s, err)
	}
	for {
		r := &received{}
		if err := s.RecvMsg(r); err != nil {
			return answered, err
		}
		answered = true
		if c.cfg.Metrics.Message != nil {
			c.cfg.Metrics.Message(r.TypeURL, r.size)
		}
		answer := c.accept(r)
		r.free()
		c.mu.Lock()
		err = s.send(answer)
		c.mu.Unlock()
		if err != nil {
			return answered, streamError(s, err)
		}
	}
}

// streamError turns the EOF that a send on a broken stream returns into the reason, which only receiving tells.
func streamError(s *stream, err error) error {
	for {
		r := &received{}
		if rerr := s.RecvMsg(r); rerr != nil {
			return fmt.Errorf("%w (while sending: %w)", rerr, err)
		}
		r.free()
	}
}

func (c *Client) open(ctx context.Context, conn *grpc.ClientConn) (*stream, error) {
	md := metadata.MD{}
	for k, v := range c.cfg.Headers {
		md.Set(k, v)
	}
	if c.cfg.ClusterID != "" {
		md.Set("clusterid", c.cfg.ClusterID)
	}
	if _, plain := c.target(); c.cfg.TokenFile != "" && !plain {
		token, err := os.ReadFile(c.cfg.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read token: %w", err)
		}
		md.Set("authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	cs, err := conn.NewStream(metadata.NewOutgoingContext(ctx, md), desc, DeltaMethod,
		grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes))
	if err != nil {
		return nil, err
	}
	return &stream{cs}, nil
}

// subscribe sends the first request of each type: who asks, and what is held already.
func (c *Client) subscribe(s *stream) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.cfg.Types {
		r := &DeltaDiscoveryRequest{Node: &c.cfg.Node, TypeURL: t, InitialResourceVersions: c.held[t]}
		if c.cfg.OnDemand && t == TypeAddress {
			// A first request without names would mean everything; this one means nothing.
			r.Subscribe, r.Unsubscribe = []string{"*"}, []string{"*"}
			r.Subscribe = append(r.Subscribe, slices.Sorted(maps.Keys(c.demanded))...)
		}
		if err := s.send(r); err != nil {
			return err
		}
	}
	c.current = s
	return nil
}

func (c *Client) setCurrent(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = s
}

func (c *Client) target() (hostPort string, plain bool) {
	hostPort, plain = strings.CutPrefix(c.cfg.Address, "http://")
	return strings.TrimSuffix(strings.TrimPrefix(hostPort, "https://"), "/"), plain
}

func (c *Client) dial() (*grpc.ClientConn, error) {
	target, plain := c.target()
	creds := insecure.NewCredentials()
	if !plain {
		cfg, err := c.tls(target)
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(cfg)
	}
	return grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(creds),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(0),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: c.cfg.KeepaliveTime, Timeout: c.cfg.KeepaliveTimeout}))
}

// tls reads the root anew: each stream has a connection of its own.
func (c *Client) tls(target string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.cfg.ServerName}
	if cfg.ServerName == "" {
		cfg.ServerName = target
		if host, _, err := net.SplitHostPort(target); err == nil {
			cfg.ServerName = host
		}
	}
	if c.cfg.RootCAFile == "" {
		return cfg, nil
	}
	data, err := os.ReadFile(c.cfg.RootCAFile)
	if err != nil {
		return nil, fmt.Errorf("read root certificate: %w", err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read root certificate: none in %s", c.cfg.RootCAFile)
	}
	return cfg, nil
}
