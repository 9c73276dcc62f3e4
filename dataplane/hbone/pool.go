// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/relay"
)

// Header is one header field; names are lower case.
type Header struct{ Name, Value string }

// Key names what a pooled connection may be shared by: streams with equal keys share connections, others never do.
type Key struct {
	Source       string         // identity that the client presents
	Destinations string         // accepted server identities, in one canonical string
	SourceIP     netip.Addr     // address of the pod the traffic comes from
	Addr         netip.AddrPort // where to connect to
}

// PoolConfig configures a Pool. Dial and TLS are required.
type PoolConfig struct {
	Config
	// IdleFor is how long a connection may carry no stream before it is closed; 0 means 5 min.
	IdleFor time.Duration
	// Dial makes the TCP connection for k.
	Dial func(ctx context.Context, k Key) (*net.TCPConn, error)
	// TLS returns the client configuration for k: certificate and verification. The pool works on a copy.
	TLS func(ctx context.Context, k Key) (*tls.Config, error)
}

// Request asks a peer for a tunnel.
type Request struct {
	Authority string
	Header    []Header
}

// Pool opens tunnels and shares connections among them. All methods may be called concurrently.
type Pool struct{ cfg PoolConfig }

// NewPool returns a pool; Open waits until Run is called.
func NewPool(cfg PoolConfig) *Pool { return &Pool{cfg: cfg} }

// Run owns the pool's goroutines. It returns nil once ctx has ended, or the pool was closed or drained, and every
// connection is gone.
func (p *Pool) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Open asks the peer that k names for a tunnel and returns once it answered 200. A refusal is a *StatusError, a
// connection that did not come about a *ConnectError. A stream that the peer certainly did not process is opened once
// more, on another connection.
func (p *Pool) Open(ctx context.Context, k Key, r *Request) (*Stream, error) { return nil, ErrClosed }

// Drain takes no new streams; connections end with their last stream.
func (p *Pool) Drain() {}

// Close cuts every connection.
func (p *Pool) Close() {}

// ConnInfo describes a live connection.
type ConnInfo struct {
	Key           Key
	Local, Remote netip.AddrPort
	Streams       int
	Draining      bool
	Since         time.Time
}

// Conns lists the live connections.
func (p *Pool) Conns() []ConnInfo { return nil }

// Stream is a tunnel that the peer accepted. Its owner must call Relay or Reset.
type Stream struct{}

// Header returns the response's header fields.
func (s *Stream) Header() []Header { return nil }

// RemoteAddr is the address of the connection's peer.
func (s *Stream) RemoteAddr() netip.AddrPort { return netip.AddrPort{} }

// LocalAddr is the connection's own address.
func (s *Stream) LocalAddr() netip.AddrPort { return netip.AddrPort{} }

// TLS is the state of the connection's TLS; it must not be changed.
func (s *Stream) TLS() *tls.ConnectionState { return nil }

// Relay moves bytes between app and the tunnel until both directions have ended, and closes app. The end of ctx cuts
// the tunnel. BytesUp counts app to peer.
func (s *Stream) Relay(ctx context.Context, app *net.TCPConn) relay.Result {
	return relay.Result{Err: ErrClosed}
}

// Reset ends the tunnel at once.
func (s *Stream) Reset(code Code) {}
