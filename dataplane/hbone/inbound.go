// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/netip"

	"github.com/ambientlab/ambientlab/dataplane/relay"
	"golang.org/x/net/http2"
)

// Inbound is one request for a tunnel.
type Inbound struct {
	Method, Authority string
	Header            []Header
	Remote, Local     netip.AddrPort
	TLS               *tls.ConnectionState // must not be changed

	s        *stream
	answered bool // by the handler's goroutine
	outlives bool // the handler: end is called by the goroutine that ends the tunnel
	start    func()
	end      func()
	left     bool // its turn has ended
	opening  bool // it counts as such; guarded by turns.mu
}

// errRefused is why a refused stream ended.
var errRefused = errors.New("refused")

// newInbound reads a request; it reports false for one that is malformed (RFC 9113 §8.1.1, §8.2.2, §8.5).
func newInbound(s *stream, f *http2.MetaHeadersFrame) (*Inbound, bool) {
	in := &Inbound{
		Method: f.PseudoValue("method"), Authority: f.PseudoValue("authority"), Header: regular(f),
		Remote: s.c.remote, Local: s.c.local, TLS: &s.c.state,
		s: s,
	}
	path, scheme := f.PseudoValue("path"), f.PseudoValue("scheme")
	for _, h := range in.Header {
		switch h.Name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return in, false
		case "te":
			if h.Value != "trailers" {
				return in, false
			}
		}
	}
	if in.Method == http.MethodConnect {
		return in, path == "" && scheme == "" && in.Authority != "" && f.PseudoValue("protocol") == ""
	}
	return in, in.Method != "" && path != "" && scheme != ""
}

// Get returns the first value of the header field with that lower-case name, or "".
func (in *Inbound) Get(name string) string {
	for _, h := range in.Header {
		if h.Name == name {
			return h.Value
		}
	}
	return ""
}

// leave ends the request's turn. That its tunnel ended well may come after.
func (in *Inbound) leave(why outcome) {
	if !in.left || why == endedWell {
		in.left = true
		in.s.c.turns.leave(in, why)
	}
}

// Refuse answers with status and ends the stream.
func (in *Inbound) Refuse(status int, h ...Header) {
	if in.answered {
		return
	}
	in.answered = true
	s := in.s
	s.pace()
	in.leave(endedBadly)
	sent := s.respond(status, true, h)
	ended := s.inputEnded()
	if s.die(errRefused, false) && sent && !ended {
		// The answer is complete; tell the peer to stop sending (RFC 9113 §8.1).
		s.c.postReset(s.id, http2.ErrCodeNo)
		s.c.kick()
	}
	s.c.forget(s)
}

// Accept answers 200, moves bytes between the tunnel and upstream until both directions have ended, and closes
// upstream. The end of ctx cuts the tunnel. BytesUp counts peer to upstream.
func (in *Inbound) Accept(ctx context.Context, upstream Socket, h ...Header) relay.Result {
	return wait(func(done func(relay.Result)) { in.accept(ctx, upstream, done, h) })
}

// AcceptThen is Accept for many tunnels that are idle most of the time: it returns when the tunnel has ended or when nothing
// has come from upstream for a while, and an idle tunnel has no goroutine. The handler must return then; its ctx ends with the
// tunnel. done is called at the end, by any goroutine.
func (in *Inbound) AcceptThen(ctx context.Context, upstream Socket, done func(relay.Result), h ...Header) {
	if in.answered {
		in.accept(ctx, upstream, done, h)
		return
	}
	in.outlives = true
	in.accept(ctx, upstream, func(r relay.Result) {
		done(r)
		in.end()
	}, h)
}

func (in *Inbound) accept(ctx context.Context, upstream Socket, done func(relay.Result), h []Header) {
	if in.answered {
		upstream.Close()
		done(relay.Result{Reset: true, Err: errRefused})
		return
	}
	in.answered = true
	in.s.respond(200, false, h)
	in.s.c.turns.answered(in)
	in.s.onAnswer = func() { in.leave(replied) }
	in.s.relay(ctx, upstream, relay.Upstream, func(r relay.Result) {
		if !r.Reset && r.BytesDown > 0 {
			in.leave(endedWell)
		}
		done(r)
	})
}

// Cut resets the tunnel, before or after Accept: for a decision that changed. It may be called from any goroutine.
func (in *Inbound) Cut(code Code) { in.s.fail(code, &ResetError{Code: code}) }

// Bytes returns what was relayed so far: peer to upstream, and upstream to peer.
func (in *Inbound) Bytes() (up, down uint64) { return in.s.bytes() }
