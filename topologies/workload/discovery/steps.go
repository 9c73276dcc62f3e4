// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/mem"

	"github.com/ambientlab/ambientlab/dataplane/xds"
)

// Report is what a client did about a step.
type Report struct {
	Step string `json:"step"`
	// Acked is set if the client took everything; Nack is what it complained of.
	Acked bool   `json:"acked"`
	Nack  string `json:"nack,omitempty"`
	// Ended is set if the client gave the stream up. It came back then, and said to hold that many resources.
	Ended bool `json:"ended"`
	Held  int  `json:"held,omitempty"`
}

// step makes a message of a nonce.
type step func(s *Server, nonce string) any

// steps by name.
var steps = map[string]step{
	"good":        one(func(v xds.Resource) []xds.Resource { return []xds.Resource{v} }),
	"undecodable": one(func(v xds.Resource) []xds.Resource { v.Value = []byte{0xff, 0xff, 0xff}; return []xds.Resource{v} }),
	"empty":       one(func(v xds.Resource) []xds.Resource { v.Value = []byte{}; return []xds.Resource{v} }),
	"unnamed":     one(func(v xds.Resource) []xds.Resource { v.Name = ""; return []xds.Resource{v} }),
	"misnamed":    one(func(v xds.Resource) []xds.Resource { v.Name += "-other"; return []xds.Resource{v} }),
	"duplicate":   one(func(v xds.Resource) []xds.Resource { return []xds.Resource{v, v} }),
	"both": func(s *Server, nonce string) any {
		return &xds.DeltaDiscoveryResponse{TypeURL: xds.TypeAddress, Nonce: nonce, Resources: []xds.Resource{s.resource(s.cfg.Victim)}, Removed: []string{s.cfg.Victim}}
	},
	"remove": func(s *Server, nonce string) any {
		return &xds.DeltaDiscoveryResponse{TypeURL: xds.TypeAddress, Nonce: nonce, Removed: []string{s.cfg.Victim, "nobody"}}
	},
	"unknown-type": func(s *Server, nonce string) any {
		return &xds.DeltaDiscoveryResponse{TypeURL: "type.googleapis.com/envoy.config.cluster.v3.Cluster", Nonce: nonce, Resources: []xds.Resource{s.resource(s.cfg.Victim)}}
	},
	"no-nonce": func(s *Server, _ string) any {
		return &xds.DeltaDiscoveryResponse{TypeURL: xds.TypeAddress, Removed: []string{s.cfg.Victim}}
	},
	"garbage": func(*Server, string) any { return raw{mem.SliceBuffer([]byte{0x12, 0xff, 0xff, 0xff, 0xff, 0x0f, 1})} },
	"oversized": func(*Server, string) any { // one page, many times over: it costs the sender nothing
		page := mem.SliceBuffer(make([]byte, 1<<20))
		return raw(slices.Repeat(mem.BufferSlice{page}, xds.MaxMessageBytes>>20+1))
	},
}

// Steps names all steps.
func Steps() []string { return slices.Sorted(maps.Keys(steps)) }

// one sends what change makes of the victim, beside a resource that is right: its version tells whether it was taken.
func one(change func(xds.Resource) []xds.Resource) step {
	return func(s *Server, nonce string) any {
		return &xds.DeltaDiscoveryResponse{TypeURL: xds.TypeAddress, Nonce: nonce, Resources: append(change(s.resource(s.cfg.Victim)), s.other(nonce))}
	}
}

// other is a resource beside the victim, in another version.
func (s *Server) other(version string) xds.Resource {
	for _, r := range s.state[xds.TypeAddress] {
		if r.Name != s.cfg.Victim {
			r.Version = version
			return r
		}
	}
	return xds.Resource{}
}

// Step sends one message and waits for the client's answer, or for its return.
func (s *Server) Step(ctx context.Context, name string) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := Report{Step: name}
	build, ok := steps[name]
	if !ok {
		return r, fmt.Errorf("no step %q; there are: %s", name, strings.Join(Steps(), ", "))
	}
	x, err := s.session(ctx)
	if err != nil {
		return r, fmt.Errorf("step %s: %w", name, err)
	}
	s.nonces++
	nonce := fmt.Sprintf("step-%d", s.nonces)
	if err := x.send(build(s, nonce)); err == nil {
		select {
		case a := <-x.answers:
			if a.ResponseNonce != nonce {
				return r, fmt.Errorf("step %s: answered nonce %q, sent %q", name, a.ResponseNonce, nonce)
			}
			r.Acked = a.ErrorDetail == nil
			if !r.Acked {
				r.Nack = a.ErrorDetail.Message
			}
			s.sessions <- x
			return r, nil
		case <-x.gone:
		case <-ctx.Done():
			return r, fmt.Errorf("step %s: no answer", name)
		}
	}
	r.Ended = true
	if x, err = s.session(ctx); err != nil {
		return r, fmt.Errorf("step %s: the client did not come back: %w", name, err)
	}
	s.sessions <- x
	r.Held = x.held
	return r, nil
}

// session is the newest stream that stands.
func (s *Server) session(ctx context.Context) (*session, error) {
	for {
		select {
		case x := <-s.sessions:
			select {
			case <-x.gone:
			default:
				return x, nil
			}
		case <-ctx.Done():
			return nil, errors.Join(errors.New("no client"), ctx.Err())
		}
	}
}
