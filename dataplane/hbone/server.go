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

// ServerConfig configures a Server. TLS and Handler are required.
type ServerConfig struct {
	Config
	// TLS returns the configuration for one incoming connection. The server works on a copy.
	TLS func(ctx context.Context) (*tls.Config, error)
	// Handler answers one request, in a goroutine of its own: it must call Accept or Refuse. ctx ends when the peer
	// resets the stream, when the connection dies and when the server cuts it.
	Handler func(ctx context.Context, in *Inbound)
	// DrainTimeout is how long Serve lets streams run on once its context has ended; 0 means 5 s.
	DrainTimeout time.Duration
	// OnHandshakeError, if set, hears of connections that never carried a stream.
	OnHandshakeError func(remote, local netip.AddrPort, err error)
}

// Server answers CONNECT requests on connections that it is given.
type Server struct{ cfg ServerConfig }

// NewServer returns a server.
func NewServer(cfg ServerConfig) *Server { return &Server{cfg: cfg} }

// Serve accepts connections from l until ctx ends or l fails, then closes l, drains the connections for up to
// DrainTimeout and returns when all are gone. After a stop by ctx or Shutdown the error is nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { <-ctx.Done(); return l.Close() }

// ServeConn serves one connection until it has ended. The end of ctx drains it like Serve does.
func (s *Server) ServeConn(ctx context.Context, conn *net.TCPConn) error { return ErrClosed }

// Shutdown announces the end to every peer (GOAWAY in two steps), waits for the streams until ctx ends, then cuts.
func (s *Server) Shutdown(ctx context.Context) error { return nil }

// Inbound is one request for a tunnel.
type Inbound struct {
	Method, Authority string
	Header            []Header
	Remote, Local     netip.AddrPort
	TLS               *tls.ConnectionState // must not be changed
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

// Refuse answers with status and ends the stream.
func (in *Inbound) Refuse(status int, h ...Header) {}

// Accept answers 200, moves bytes between the tunnel and upstream until both directions have ended, and closes
// upstream. The end of ctx cuts the tunnel. BytesUp counts peer to upstream.
func (in *Inbound) Accept(ctx context.Context, upstream *net.TCPConn, h ...Header) relay.Result {
	return relay.Result{Err: ErrClosed}
}

// Cut resets the tunnel, before or after Accept: for a decision that changed.
func (in *Inbound) Cut(code Code) {}
