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
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

// errConnect says that there never was a stream.
var errConnect = errors.New("connect to control plane")

// errNoNonce ends a stream: a response without a nonce can be neither acknowledged nor refused.
var errNoNonce = errors.New("a response without a nonce")

// reconnectMax bounds the waits between attempts at a connection: a packet each, that a silent control plane costs nobody
// else, and how late its return is noticed.
const reconnectMax = time.Second

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
	s, err := c.awaitStream(ctx, conn)
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
		if r.Nonce == "" {
			r.free()
			return answered, errNoNonce
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

// awaitStream opens the stream as soon as there is a connection, however long that takes: each connection that comes
// about is told by gRPC, and the waits between the attempts at one stay short, whatever happened to streams before.
func (c *Client) awaitStream(ctx context.Context, conn *grpc.ClientConn) (*stream, error) {
	failed, again := "", c.cfg.BackoffMin
	for ctx.Err() == nil {
		state := conn.GetState()
		switch state {
		case connectivity.Idle:
			conn.Connect()
		case connectivity.Ready:
			return c.open(ctx, conn)
		case connectivity.TransientFailure:
			// The attempt to open a stream tells why there is no connection; if there is one by now, so much the better.
			s, err := c.open(ctx, conn)
			if err == nil {
				return s, nil
			}
			if ctx.Err() != nil {
				return nil, err
			}
			c.away(ctx, err, &failed)
		}
		// gRPC tries on without a change of state; what it meets is asked for now and then.
		changed, cancel := context.WithTimeout(ctx, again)
		conn.WaitForStateChange(changed, state)
		cancel()
		if state == connectivity.TransientFailure {
			again = min(2*again, c.cfg.BackoffMax)
		}
	}
	return nil, ctx.Err()
}

// away counts a connection that did not come about, and logs it if the reason is another than the last.
func (c *Client) away(ctx context.Context, err error, last *string) {
	if c.cfg.Metrics.Terminated != nil {
		c.cfg.Metrics.Terminated(reasonConnection)
	}
	if err.Error() != *last {
		*last = err.Error()
		c.cfg.Log.WarnContext(ctx, "control plane cannot be reached", "address", c.cfg.Address, "error", err)
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
		// gRPC takes the name to check from the credentials that it was given.
		named := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.serverName(target)})
		creds = freshTLS{TransportCredentials: named, config: func() (*tls.Config, error) { return c.tls(target) }}
	}
	return grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(creds),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(0), grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: c.cfg.BackoffMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: min(reconnectMax, c.cfg.BackoffMax)},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: c.cfg.KeepaliveTime, Timeout: c.cfg.KeepaliveTimeout}))
}

// freshTLS makes the configuration anew for each handshake: the root may have been replaced since the last attempt.
type freshTLS struct {
	credentials.TransportCredentials
	config func() (*tls.Config, error)
}

func (f freshTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := f.config()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, raw)
}

func (f freshTLS) Clone() credentials.TransportCredentials {
	return freshTLS{f.TransportCredentials.Clone(), f.config}
}

// serverName is what the server's certificate must say.
func (c *Client) serverName(target string) string {
	if c.cfg.ServerName != "" {
		return c.cfg.ServerName
	}
	if host, _, err := net.SplitHostPort(target); err == nil {
		return host
	}
	return target
}

// tls reads the root anew.
func (c *Client) tls(target string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.serverName(target)}
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
