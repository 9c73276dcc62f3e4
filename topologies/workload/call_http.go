// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"
)

// newTransport makes a pool of at most one idle connection.
func newTransport(t target, o Options, d dialer) *http.Transport {
	var protos http.Protocols
	switch {
	case t.scheme == "h2c" || t.scheme == "grpc":
		protos.SetUnencryptedHTTP2(true)
	case t.scheme == "https" && o.HTTP2:
		protos.SetHTTP2(true)
	case t.scheme == "https":
		protos.SetHTTP1(true)
		protos.SetHTTP2(true)
	default:
		protos.SetHTTP1(true) // WebSocket needs it too
	}
	return &http.Transport{
		Protocols: &protos,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var c Call
			tr, _ := ctx.Value(traceKey{}).(*trace)
			if tr != nil {
				c.Start = tr.start
			}
			conn, err := d.dial(ctx, network, addr, &c)
			if tr != nil {
				tr.note(func(to *Call) { to.Connect, to.LocalAddr, to.RemoteAddr = c.Connect, c.LocalAddr, c.RemoteAddr })
			}
			return conn, err
		},
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the lab's servers sign themselves
		DisableCompression:  true,
		MaxIdleConnsPerHost: 1,
	}
}

// trace gathers what the transport's goroutines tell of one call; they may still do so after the call has failed.
type trace struct {
	start time.Time
	mu    sync.Mutex
	got   Call
}

type traceKey struct{}

func (t *trace) note(f func(*Call)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.got)
}

// finish copies what is known by now.
func (t *trace) finish(c *Call) {
	t.note(func(got *Call) {
		c.Connect, c.FirstByte, c.Reused, c.LocalAddr, c.RemoteAddr = got.Connect, got.FirstByte, got.Reused, got.LocalAddr, got.RemoteAddr
	})
}

func startTrace(ctx context.Context, c *Call) (context.Context, *trace) {
	t := &trace{start: c.Start}
	ctx = context.WithValue(ctx, traceKey{}, t)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			t.note(func(c *Call) {
				c.Reused = i.Reused
				c.LocalAddr, c.RemoteAddr = addrPort(i.Conn.LocalAddr()), addrPort(i.Conn.RemoteAddr())
			})
		},
		GotFirstResponseByte: func() { t.note(func(c *Call) { c.FirstByte = time.Since(t.start) }) },
	}), t
}

// httpSession calls the http, h2c and tls servers.
type httpSession struct {
	target target
	opts   Options
	http   *http.Transport
}

func (s *httpSession) close() { s.http.CloseIdleConnections() }

func (s *httpSession) call(ctx context.Context, c *Call) error {
	ctx, tr := startTrace(ctx, c)
	defer tr.finish(c)
	req, err := s.request(ctx)
	if err != nil {
		return err
	}
	resp, err := s.http.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	c.Status = resp.StatusCode
	c.BytesSent = s.opts.Size
	if err := s.body(resp, c); err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("%w %s", errStatus, resp.Status)
	}
	if s.opts.Size > 0 && c.Seen != nil {
		return c.Seen.got(s.opts.Size)
	}
	return nil
}

func (s *httpSession) request(ctx context.Context) (*http.Request, error) {
	u := *s.target.url
	if u.Scheme == "h2c" {
		u.Scheme = "http"
	}
	if s.opts.Download > 0 {
		u.Path = fmt.Sprintf("/size/%d", s.opts.Download)
	}
	method, body := http.MethodGet, io.Reader(nil)
	if s.opts.Size > 0 {
		method, body = http.MethodPost, &patternReader{n: s.opts.Size}
	}
	if s.opts.Method != "" {
		method = s.opts.Method
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = s.opts.Size
	req.Close = !s.opts.KeepOpen
	s.opts.setHeader(req)
	return req, nil
}

func (o Options) setHeader(req *http.Request) {
	for _, h := range o.Header {
		name, value, _ := strings.Cut(h, ":")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if strings.EqualFold(name, "host") {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
}

// body reads the answer: the pattern, or a Seen, or whatever it is.
func (s *httpSession) body(resp *http.Response, c *Call) error {
	if s.opts.Download > 0 && resp.StatusCode == http.StatusOK {
		return receiveAll(c, resp.Body, s.opts.Download)
	}
	sum := newCounter()
	var text strings.Builder
	_, err := io.Copy(io.MultiWriter(sum, &limited{w: &text, left: 1 << 20}), resp.Body)
	c.BytesRecv, c.SHA256 = sum.n, sum.sum()
	if err != nil {
		return err
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		seen := &Seen{}
		if json.Unmarshal([]byte(text.String()), seen) == nil && seen.Protocol != "" {
			c.Seen = seen
		}
	}
	return nil
}

// limited passes the first bytes on and swallows the rest.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	keep := b[:min(len(b), l.left)]
	l.left -= len(keep)
	if _, err := l.w.Write(keep); err != nil {
		return 0, err
	}
	return len(b), nil
}
