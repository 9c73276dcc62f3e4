// SPDX-License-Identifier: Apache-2.0

// Package discovery is a control plane that serves what it is told to, right or wrong: first a whole mesh from one
// document, then, step by step, messages that no honest control plane sends. It says what the client answered to each.
// Source: reference, "WDS: workload discovery over delta xDS".
package discovery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"github.com/ambientlab/ambientlab/dataplane/xds"
)

// Config is what to serve, where. It is read as JSON.
type Config struct {
	Listen string `json:"listen"`
	// Cert and Key are the server's, in PEM.
	Cert string `json:"cert"`
	Key  string `json:"key"`
	// Mesh is a document as LOCAL_XDS_PATH names: what is right.
	Mesh string `json:"mesh"`
	// Victim is the uid of the workload that bad resources pretend to be.
	Victim string `json:"victim"`
}

// patience bounds the wait for a client's answer.
const patience = 10 * time.Second

// Server is one such control plane.
type Server struct {
	cfg      Config
	tls      *tls.Config
	state    map[string][]xds.Resource // by type
	sessions chan *session             // those that hold everything
	nonces   int                       // owned by Step
}

// New checks the configuration.
func New(cfg Config) (*Server, error) {
	cert, err := tls.X509KeyPair([]byte(cfg.Cert), []byte(cfg.Key))
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	s := &Server{
		cfg: cfg, state: map[string][]xds.Resource{}, sessions: make(chan *session, 100),
		tls: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}},
	}
	mesh, err := xds.DecodeLocal([]byte(cfg.Mesh))
	if err != nil {
		return nil, err
	}
	add := func(typeURL, name string, value []byte, err error) error {
		s.state[typeURL] = append(s.state[typeURL], xds.Resource{Name: name, Version: "1", Value: value})
		return err
	}
	var errs []error
	for _, w := range mesh.Workloads {
		name, value, err := xds.EncodeWorkload(w)
		errs = append(errs, add(xds.TypeAddress, name, value, err))
	}
	for _, v := range mesh.Services {
		name, value, err := xds.EncodeService(v)
		errs = append(errs, add(xds.TypeAddress, name, value, err))
	}
	for _, p := range mesh.Policies {
		name, value, err := xds.EncodePolicy(p)
		errs = append(errs, add(xds.TypeAuthorization, name, value, err))
	}
	if s.resource(cfg.Victim).Name == "" {
		errs = append(errs, fmt.Errorf("the mesh has no workload %q", cfg.Victim))
	}
	return s, errors.Join(errs...)
}

// resource is the right one of a name.
func (s *Server) resource(name string) xds.Resource {
	for _, r := range s.state[xds.TypeAddress] {
		if r.Name == name {
			return r
		}
	}
	return xds.Resource{}
}

// Run serves until ctx ends; it calls ready once it listens.
func (s *Server) Run(ctx context.Context, ready func()) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	rpc := grpc.NewServer(append(xds.ServerOptions(), grpc.Creds(credentials.NewTLS(s.tls)), grpc.MaxSendMsgSize(1<<30),
		grpc.ForceServerCodecV2(codec{xds.Codec()}), grpc.UnknownServiceHandler(s.handle))...)
	stop := context.AfterFunc(ctx, rpc.Stop)
	defer stop()
	ready()
	if err := rpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) && ctx.Err() == nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// raw is a message as it stands, be it one or not.
type raw mem.BufferSlice

type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(raw); ok {
		return mem.BufferSlice(r), nil
	}
	return c.CodecV2.Marshal(v)
}

// session is one stream of a client.
type session struct {
	stream  grpc.ServerStream
	held    int                             // resources that the client said to hold when it came
	answers chan *xds.DeltaDiscoveryRequest // to steps
	gone    chan struct{}

	mu sync.Mutex // serialises sending
}

func (x *session) send(m any) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stream.SendMsg(m)
}

// handle serves a stream: everything that is right at first, then what steps send.
func (s *Server) handle(_ any, stream grpc.ServerStream) error {
	x := &session{stream: stream, answers: make(chan *xds.DeltaDiscoveryRequest, 100), gone: make(chan struct{})}
	defer close(x.gone)
	open, begun := map[string]bool{}, 0
	for {
		r := &xds.DeltaDiscoveryRequest{}
		if err := stream.RecvMsg(r); err != nil {
			return nil //nolint:nilerr // it is the client's to end the stream
		}
		switch {
		case open[r.ResponseNonce]:
			delete(open, r.ResponseNonce)
			if len(open) == 0 && begun == len(types) {
				s.sessions <- x
			}
		case r.ResponseNonce != "":
			x.answers <- r
		default:
			begun++
			x.held += len(r.InitialResourceVersions)
			nonce := "all-" + strconv.Itoa(begun)
			open[nonce] = true
			if err := x.send(&xds.DeltaDiscoveryResponse{TypeURL: r.TypeURL, Nonce: nonce, Resources: s.state[r.TypeURL]}); err != nil {
				return err
			}
		}
	}
}

// types are those that a ztunnel subscribes to.
var types = []string{xds.TypeAddress, xds.TypeAuthorization}
