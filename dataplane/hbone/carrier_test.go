// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// carrier tunnels one application's TCP connection to another: ours, and what it is measured against.
type carrier interface {
	// carry relays between app and a new connection to dst, and returns when both are done.
	carry(app *net.TCPConn, dst netip.AddrPort) error
}

// proxy is what an application connects to instead of dst, as if captured.
type proxy struct{ addr netip.AddrPort }

func startProxy(t testing.TB, c carrier, dst netip.AddrPort) *proxy {
	return &proxy{serveApps(t, func(app *net.TCPConn) {
		if err := c.carry(app, dst); err != nil {
			t.Errorf("carry: %v", err)
		}
	})}
}

func (p *proxy) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", p.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// ours carries through this package.
type ours struct {
	pool *Pool
	srv  *Server
	hop  netip.AddrPort
}

func newOurs(t testing.TB) *ours {
	srv, hop := startServer(t, serverConfig())
	return &ours{startPool(t, clientConfig()), srv, hop}
}

func (o *ours) carry(app *net.TCPConn, dst netip.AddrPort) error {
	s, err := o.pool.Open(context.Background(), Key{Addr: o.hop}, &Request{Authority: dst.String()})
	if err != nil {
		app.Close()
		return err
	}
	return s.Relay(context.Background(), app).Err
}

// stock carries through golang.org/x/net/http2's Transport and Server.
type stock struct {
	tr  *http2.Transport
	hop netip.AddrPort
}

func newStock(t testing.TB) *stock {
	l := listen(t)
	srv := &http2.Server{}
	hs := &http.Server{Handler: http.HandlerFunc(stockHandler)}
	var g sync.WaitGroup
	g.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.Go(func() {
				tc := tls.Server(c, pki().server)
				defer tc.Close()
				if tc.Handshake() == nil {
					srv.ServeConn(tc, &http2.ServeConnOpts{BaseConfig: hs, Handler: hs.Handler})
				}
			})
		}
	})
	tr := &http2.Transport{TLSClientConfig: pki().client}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		l.Close()
		g.Wait()
	})
	return &stock{tr, addrOf(l)}
}

func stockHandler(w http.ResponseWriter, r *http.Request) {
	up, err := net.Dial("tcp", r.Host)
	if err != nil {
		w.WriteHeader(503)
		return
	}
	defer up.Close()
	rc := http.NewResponseController(w)
	rc.EnableFullDuplex()
	w.WriteHeader(200)
	rc.Flush()
	var g sync.WaitGroup
	g.Go(func() {
		copyWith(up, r.Body, func() error { return nil })
		up.(*net.TCPConn).CloseWrite()
	})
	copyWith(w, up, rc.Flush)
	g.Wait()
}

var copyBufs = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// copyWith is io.Copy with a flush after each write.
func copyWith(dst io.Writer, src io.Reader, flush func() error) error {
	buf := copyBufs.Get().(*[64 << 10]byte)
	defer copyBufs.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
			if err := flush(); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

func (s *stock) carry(app *net.TCPConn, dst netip.AddrPort) error {
	defer app.Close()
	resp, err := s.tr.RoundTrip(connectRequest(s.hop, dst.String(), onlyReader{app}))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	copyWith(app, resp.Body, func() error { return nil })
	app.CloseWrite() // fails after a reset, which ends the tunnel all the same
	return nil
}

type onlyReader struct{ io.Reader }

// bareTLS carries each stream through a TLS connection of its own.
type bareTLS struct{ hop netip.AddrPort }

func newBareTLS(t testing.TB, dst netip.AddrPort) *bareTLS {
	return &bareTLS{serveApps(t, func(c *net.TCPConn) {
		tc := tls.Server(c, pki().server)
		defer tc.Close()
		if tc.Handshake() != nil {
			return
		}
		up, err := net.Dial("tcp", dst.String())
		if err != nil {
			return
		}
		defer up.Close()
		relayTLS(tc, up.(*net.TCPConn))
	})}
}

func (b *bareTLS) carry(app *net.TCPConn, _ netip.AddrPort) error {
	defer app.Close()
	tc, err := tls.Dial("tcp", b.hop.String(), pki().client)
	if err != nil {
		return err
	}
	defer tc.Close()
	relayTLS(tc, app)
	return nil
}

func relayTLS(tc *tls.Conn, app *net.TCPConn) {
	var g sync.WaitGroup
	g.Go(func() {
		copyWith(onlyWriter{app}, tc, func() error { return nil })
		app.CloseWrite()
	})
	copyWith(tc, onlyReader{app}, func() error { return nil })
	tc.CloseWrite()
	g.Wait()
}

type onlyWriter struct{ io.Writer }
