// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambientlab/ambientlab/dataplane/xds"
)

// deltaStream is the server's end of one ADS stream.
type deltaStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// Proxy is a connected client of the discovery service, for people to look at.
type Proxy struct {
	Node    string // its own id
	Account string // whom its token names, as namespace/service account
	Remote  string
	Since   time.Time
	Types   map[string]TypeState // by type URL
}

// TypeState is where a client stands with one type.
type TypeState struct {
	Wildcard  bool
	Names     int // subscribed by name
	Sent      int // responses
	Resources int // sent in all
	Removed   int
	// SentVersion and AckedVersion are generations of the control plane's view.
	SentVersion  string
	AckedVersion string
	Rejected     string // the newest NACK's message, "" after an ACK
}

// stream serves one client.
type stream struct {
	server *Server
	wire   deltaStream
	log    *slog.Logger

	subs map[string]*subscription // owned by serve

	mu    sync.Mutex // guards proxy
	proxy Proxy
}

// serve answers requests and follows views until the client or the server is done. quit tells that the server is.
func (s *stream) serve(ctx context.Context, quit <-chan struct{}) error {
	requests := make(chan *discovery.DeltaDiscoveryRequest)
	ended := make(chan error, 1)
	// The reader ends with the stream's context, at the latest when this handler has returned.
	s.server.readers.Go(func() { ended <- s.read(ctx, requests) })
	for {
		changed := s.server.views.changed()
		if err := s.push(s.server.views.load()); err != nil {
			return err
		}
		select {
		case r := <-requests:
			if err := s.handle(ctx, r); err != nil {
				return err
			}
		case <-changed:
		case err := <-ended:
			return err
		case <-quit:
			return status.Error(codes.Unavailable, "the control plane is shutting down")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *stream) read(ctx context.Context, to chan<- *discovery.DeltaDiscoveryRequest) error {
	for {
		r, err := s.wire.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case to <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *stream) handle(ctx context.Context, r *discovery.DeltaDiscoveryRequest) error {
	s.identify(r)
	if r.GetResponseNonce() != "" {
		s.acknowledge(r)
	}
	v, err := s.server.views.wait(ctx)
	if err != nil {
		return err
	}
	if v.table(r.GetTypeUrl()) == nil {
		s.log.Warn("proxy asks for a type that is not served", "type", r.GetTypeUrl())
		return nil
	}
	sub := s.subs[r.GetTypeUrl()]
	if sub == nil {
		sub, asked := begin(r)
		s.subs[sub.url] = sub
		s.log.Debug("proxy subscribes", "type", sub.url, "wildcard", sub.wildcard, "names", len(sub.names), "holds", len(sub.held))
		return s.send(v, sub, asked, true)
	}
	return s.send(v, sub, sub.change(r), false)
}

// push brings every subscription up to v: policies before the workloads that name them, or a name would mean nothing
// until its policy is there.
func (s *stream) push(v *view) error {
	if v == nil {
		return nil
	}
	for _, url := range []string{xds.TypeAuthorization, xds.TypeAddress, xds.TypeWorkload} {
		if sub := s.subs[url]; sub != nil {
			if err := s.send(v, sub, nil, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// send answers a subscription; the first request of one even if there is nothing to say: the client is not ready before
// it has heard.
func (s *stream) send(v *view, sub *subscription, asked []string, first bool) error {
	d := sub.update(v, asked, !first)
	if !first && len(d.changed)+len(d.removed) == 0 {
		return nil
	}
	r := sub.respond(v, d)
	s.mu.Lock()
	st := s.proxy.Types[sub.url]
	st.Wildcard, st.Names = sub.wildcard, len(sub.names)
	st.Sent++
	st.Resources += len(d.changed)
	st.Removed += len(d.removed)
	st.SentVersion = r.GetSystemVersionInfo()
	s.proxy.Types[sub.url] = st
	s.mu.Unlock()
	s.server.metrics.pushed(sub.url)
	s.log.Debug("push", "type", sub.url, "resources", len(d.changed), "removed", len(d.removed), "nonce", r.GetNonce(), "version", r.GetSystemVersionInfo())
	return s.wire.Send(r)
}

func (s *stream) acknowledge(r *discovery.DeltaDiscoveryRequest) {
	sub := s.subs[r.GetTypeUrl()]
	if sub == nil {
		return
	}
	newest := strconv.Itoa(sub.nonce) == r.GetResponseNonce()
	s.mu.Lock()
	st := s.proxy.Types[sub.url]
	if bad := r.GetErrorDetail(); bad != nil {
		st.Rejected = bad.GetMessage()
		s.log.Warn("proxy rejects resources", "type", sub.url, "nonce", r.GetResponseNonce(), "err", bad.GetMessage())
		s.server.metrics.rejected(sub.url)
	} else {
		st.Rejected = ""
		s.log.Debug("proxy acknowledges", "type", sub.url, "nonce", r.GetResponseNonce())
	}
	if newest {
		st.AckedVersion = st.SentVersion
	}
	s.proxy.Types[sub.url] = st
	s.mu.Unlock()
}

// identify takes the node from the first request that names it.
func (s *stream) identify(r *discovery.DeltaDiscoveryRequest) {
	id := r.GetNode().GetId()
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" || s.proxy.Node != "" {
		return
	}
	s.proxy.Node = id
	s.log = s.log.With("node", id)
	s.log.Info("proxy connected")
}

func (s *stream) describe() Proxy {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.proxy
	p.Types = make(map[string]TypeState, len(s.proxy.Types))
	for k, v := range s.proxy.Types {
		p.Types[k] = v
	}
	return p
}
