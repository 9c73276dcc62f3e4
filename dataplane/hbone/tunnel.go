// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"net/netip"

	"github.com/ambientlab/ambientlab/dataplane/relay"
)

// Stream is a tunnel that the peer accepted. Its owner must call Relay or Reset.
type Stream struct {
	s      *stream
	header []Header
}

// Header returns the response's header fields.
func (s *Stream) Header() []Header { return s.header }

// RemoteAddr is the address of the connection's peer.
func (s *Stream) RemoteAddr() netip.AddrPort { return s.s.c.remote }

// LocalAddr is the connection's own address.
func (s *Stream) LocalAddr() netip.AddrPort { return s.s.c.local }

// TLS is the state of the connection's TLS; it must not be changed.
func (s *Stream) TLS() *tls.ConnectionState { return &s.s.c.state }

// Relay moves bytes between app and the tunnel until both directions have ended, and closes app. The end of ctx cuts
// the tunnel. BytesUp counts app to peer.
func (s *Stream) Relay(ctx context.Context, app Socket) relay.Result {
	return wait(func(done func(relay.Result)) { s.RelayThen(ctx, app, done) })
}

// RelayThen is Relay for many tunnels that are idle most of the time: it returns when the tunnel has ended or when nothing
// has come from app for a while, and an idle tunnel has no goroutine. done is called at the end, by any goroutine.
func (s *Stream) RelayThen(ctx context.Context, app Socket, done func(relay.Result)) {
	s.s.relay(ctx, app, relay.Downstream, done)
}

// wait returns what move passes to done.
func wait(move func(done func(relay.Result))) relay.Result {
	result := make(chan relay.Result, 1)
	move(func(r relay.Result) { result <- r })
	return <-result
}

// Reset ends the tunnel at once.
func (s *Stream) Reset(code Code) {
	s.s.fail(code, &ResetError{Code: code})
	s.s.c.forget(s.s)
}

// Bytes returns what was relayed so far: app to peer, and peer to app.
func (s *Stream) Bytes() (up, down uint64) {
	in, out := s.s.bytes()
	return out, in
}

func (s *stream) bytes() (in, out uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytesIn, s.bytesOut
}
