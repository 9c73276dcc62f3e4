// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

// serveHTTP serves the HTTP family: HTTP, H2C, GRPC and TLS.
func (s *Server) serveHTTP(ctx context.Context, l listener) error {
	var protos http.Protocols
	switch l.protocol {
	case HTTP:
		protos.SetHTTP1(true)
	case TLS:
		protos.SetHTTP1(true)
		protos.SetHTTP2(true)
	default:
		protos.SetUnencryptedHTTP2(true)
	}
	handler := s.handler(ctx, l.protocol)
	srv := &http.Server{
		Protocols: &protos,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !s.enter() { // Close does not wait for handlers, so they are counted
				panic(http.ErrAbortHandler)
			}
			defer s.group.Done()
			handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: time.Minute,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          log.New(io.Discard, "", 0), // what callers do wrong is theirs to report
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if l.protocol != TLS {
		return srv.Serve(l)
	}
	conf, err := selfSigned(s.cfg.Workload, s.cfg.IP)
	if err != nil {
		return err
	}
	srv.TLSConfig = conf
	return srv.ServeTLS(l, "", "")
}

func (s *Server) handler(ctx context.Context, protocol string) http.Handler {
	mux := http.NewServeMux()
	if protocol == GRPC {
		mux.HandleFunc("POST "+grpcSeen, s.grpcSeen)
		mux.HandleFunc("POST "+grpcStream, s.grpcStream)
		mux.HandleFunc("POST "+grpcHealth, grpcHealthy)
		mux.HandleFunc("/", grpcUnimplemented)
		return mux
	}
	mux.HandleFunc("/size/{n}", sized)
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.PathValue("code"))
		if err != nil || code < 200 || code > 599 {
			code = http.StatusBadRequest
		}
		s.answer(w, r, protocol, code)
	})
	mux.HandleFunc("/wait/{time}", func(w http.ResponseWriter, r *http.Request) { s.answerLate(ctx, w, r, protocol) })
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) { s.webSocket(ctx, w, r) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, protocol, http.StatusOK) })
	return mux
}

// answerLate keeps silent for as long as it is asked to, as a long poll does.
func (s *Server) answerLate(ctx context.Context, w http.ResponseWriter, r *http.Request, protocol string) {
	d, err := time.ParseDuration(r.PathValue("time"))
	if err != nil || d < 0 {
		http.Error(w, "time is not a duration", http.StatusBadRequest)
		return
	}
	late := time.NewTimer(d)
	defer late.Stop()
	select {
	case <-late.C:
		s.answer(w, r, protocol, http.StatusOK)
	case <-r.Context().Done():
	case <-ctx.Done():
	}
}

// answer reads the whole request and says what was seen of it.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, protocol string, code int) {
	body := newCounter()
	if _, err := io.Copy(body, r.Body); err != nil {
		http.Error(w, "read body: "+err.Error(), http.StatusBadRequest)
		return
	}
	seen := s.seenHTTP(r, protocol)
	if body.n > 0 {
		seen.Bytes, seen.SHA256 = body.n, body.sum()
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	s.debug(protocol, json.NewEncoder(w).Encode(seen))
}

func (s *Server) seenHTTP(r *http.Request, protocol string) Seen {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	seen := s.seen(protocol, nil, local)
	if remote, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		seen.RemoteAddr = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	}
	seen.Host, seen.Proto, seen.Method, seen.Path, seen.Headers = r.Host, r.Proto, r.Method, r.URL.Path, r.Header
	return seen
}

// sized answers with n bytes of the pattern.
func sized(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
	if err != nil || n < 0 {
		http.Error(w, "size is not a number of bytes", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	_, _ = writePattern(w, n) // a caller that is gone knows it
}

// webSocket sends a Seen as its first message and then echoes.
func (s *Server) webSocket(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // no browser, no origin
	if err != nil {
		s.debug(WebSocket, err)
		return
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(maxMessage)
	data, err := json.Marshal(s.seenHTTP(r, WebSocket))
	if err != nil {
		return
	}
	if err := c.Write(ctx, websocket.MessageText, data); err != nil {
		s.debug(WebSocket, err)
		return
	}
	for {
		kind, msg, err := c.Read(ctx)
		if err != nil {
			return
		}
		if err := c.Write(ctx, kind, msg); err != nil {
			s.debug(WebSocket, err)
			return
		}
	}
}

// WebSocket is the protocol that Seen names for it; it has no listener of its own.
const WebSocket = "ws"

// maxMessage bounds one WebSocket or gRPC message, which is held in memory.
const maxMessage = 64 << 20
