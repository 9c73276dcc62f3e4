// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"testing"

	"golang.org/x/net/http2"
)

// TestPoolTalksToStockServer runs tunnels from this package's pool through x/net/http2's server.
func TestPoolTalksToStockServer(t *testing.T) {
	s := newStock(t)
	p := startPool(t, clientConfig())
	app := serveApps(t, echo)
	for _, size := range []int{0, 1, 64 << 10, 8 << 20} {
		tun := openTunnel(t, p, s.hop, app)
		exchange(t, tun.TCPConn, size)
		if r := tun.end(t); r.Err != nil || r.BytesUp != uint64(size) || r.BytesDown != uint64(size) {
			t.Errorf("%d bytes: result %+v", size, r)
		}
	}
	_, err := p.Open(testContext(t), Key{Addr: s.hop}, &Request{Authority: "127.0.0.1:0"})
	var refused *StatusError
	if !errors.As(err, &refused) || refused.Code != 503 {
		t.Errorf("no upstream: %v", err)
	}
}

// TestStockTransportTalksToServer runs tunnels from x/net/http2's transport through this package's server.
func TestStockTransportTalksToServer(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	tr := &http2.Transport{TLSClientConfig: pki().client}
	defer tr.CloseIdleConnections()
	s := &stock{tr, hop}
	app := startProxy(t, s, serveApps(t, echo))
	for _, size := range []int{0, 1, 64 << 10, 8 << 20} {
		exchange(t, app.dial(t), size)
	}
	resp, err := tr.RoundTrip(connectRequest(hop, "127.0.0.1:0", http.NoBody))
	if err != nil || resp.StatusCode != 503 {
		t.Errorf("no upstream: %v, %v", resp, err)
	}
	if err == nil {
		resp.Body.Close()
	}
}

// TestStockTransportGET: what is not a CONNECT comes to the handler with its method.
func TestStockTransportGET(t *testing.T) {
	cfg := serverConfig()
	cfg.Handler = func(_ context.Context, in *Inbound) {
		if in.Method != "CONNECT" {
			in.Refuse(400, Header{"x-method", in.Method})
		}
	}
	_, hop := startServer(t, cfg)
	tr := &http2.Transport{TLSClientConfig: pki().client}
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequest("GET", "https://"+hop.String()+"/", nil)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 400 || resp.Header.Get("X-Method") != "GET" {
		t.Errorf("got %v %v", resp.Status, resp.Header)
	}
}

func connectRequest(hop netip.AddrPort, authority string, body io.Reader) *http.Request {
	return &http.Request{
		Method: http.MethodConnect, Host: authority, Header: http.Header{},
		URL: &url.URL{Scheme: "https", Host: hop.String()}, Body: io.NopCloser(body),
	}
}

// exchange sends size random bytes to an echo and compares what comes back, to the end.
func exchange(t testing.TB, c *net.TCPConn, size int) {
	t.Helper()
	want := randomBytes(size)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(want)
		c.CloseWrite()
		sent <- err
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes: got %d back, equal %v, %v", size, len(got), bytes.Equal(got, want), err)
	}
	c.Close()
}
