// SPDX-License-Identifier: Apache-2.0

// Package peer speaks HBONE with whatever certificate it is given, good or bad: as a client that asks a ztunnel for a
// tunnel, and as the server at the end of one. It believes every peer; the one under test must not. Where the
// certificates come from is the caller's business.
// Source: reference, "The CONNECT exchange" and "TLS".
package peer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambientlab/ambientlab/dataplane/hbone"
)

// Material is a certificate with its chain, and its key, in PEM. Without a certificate none is presented.
type Material struct {
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
}

// Order is what a peer is to do, as JSON on its standard input.
type Order struct {
	Material
	// Address is where a client connects to, and where a server listens.
	Address netip.AddrPort `json:"address"`
	// Authority is the client's request; empty means Address's host with port 8080.
	Authority string `json:"authority,omitempty"`
	// App is where a server takes tunnels to.
	App netip.AddrPort `json:"app,omitzero"`
}

// Outcome is what became of a client's request.
type Outcome struct {
	// Status is the peer's answer; 0 if it gave none.
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"`
	// Server is the first URI of the server's certificate, Serial its number, if the handshake came that far.
	Server string `json:"server,omitempty"`
	Serial string `json:"serial,omitempty"`
}

const patience = 10 * time.Second

// Read reads an order.
func Read(r io.Reader) (o Order, err error) {
	if err := json.NewDecoder(r).Decode(&o); err != nil {
		return o, fmt.Errorf("read order: %w", err)
	}
	if !o.Address.IsValid() {
		return o, errors.New("read order: no address")
	}
	return o, nil
}

func (m Material) config() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
	if m.Cert == "" {
		return cfg, nil
	}
	cert, err := tls.X509KeyPair([]byte(m.Cert), []byte(m.Key))
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	cfg.Certificates = []tls.Certificate{cert}
	// Presented even to a server that names other authorities.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return cfg, nil
}

// Call asks for one tunnel, and gives it up at once.
func Call(ctx context.Context, o Order) (Outcome, error) {
	cfg, err := o.config()
	if err != nil {
		return Outcome{}, err
	}
	var out Outcome
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if c := cs.PeerCertificates[0]; len(c.URIs) > 0 {
			out.Server, out.Serial = c.URIs[0].String(), c.SerialNumber.String()
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pool := hbone.NewPool(hbone.PoolConfig{
		TLS: func(context.Context, hbone.Key) (*tls.Config, error) { return cfg, nil },
		Dial: func(ctx context.Context, k hbone.Key) (*net.TCPConn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", k.Addr.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil //nolint:forcetypeassert // it was asked for
		},
	})
	done := make(chan error, 1)
	go func() { done <- pool.Run(ctx) }()
	authority := o.Authority
	if authority == "" {
		authority = netip.AddrPortFrom(o.Address.Addr(), 8080).String()
	}
	s, err := pool.Open(ctx, hbone.Key{Addr: o.Address}, &hbone.Request{Authority: authority})
	var refused *hbone.StatusError
	switch {
	case err == nil:
		out.Status = 200
		s.Reset(http2.ErrCodeCancel)
	case errors.As(err, &refused):
		out.Status = refused.Code
	default:
		out.Error = err.Error()
	}
	pool.Close()
	return out, <-done
}

// Serve answers every CONNECT on o's address by a connection to o.App, until ctx ends. It calls ready once it listens.
func Serve(ctx context.Context, o Order, ready func()) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	cfg.ClientAuth = tls.RequestClientCert
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Address.String())
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ready()
	s := hbone.NewServer(hbone.ServerConfig{
		Config:       hbone.Config{},
		DrainTimeout: time.Millisecond,
		TLS:          func(context.Context) (*tls.Config, error) { return cfg, nil },
		Handler: func(ctx context.Context, in *hbone.Inbound) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", o.App.String())
			if err != nil {
				in.Refuse(503)
				return
			}
			app := c.(*net.TCPConn) //nolint:forcetypeassert // it was asked for
			defer app.Close()
			_ = in.Accept(ctx, app)
		},
	})
	return s.Serve(ctx, l)
}
