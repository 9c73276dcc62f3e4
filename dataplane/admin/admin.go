// SPDX-License-Identifier: Apache-2.0

// Package admin serves what an operator asks a daemon: readiness, metrics, a config dump in upstream's JSON shape, the
// log level, profiles, and an index page. It knows the shape of a dump, not where its contents come from, and opens no
// sockets: its listeners are given to it.
// Sources: reference, "Admin", "Ports"; the dump's shape as istioctl ztunnel-config reads it.
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config is what a daemon offers. Nil fields are not offered: their pages answer 404.
type Config struct {
	Name      string         // the daemon's name, for the index page
	Version   string         // its version, likewise
	Readiness *Readiness     // nil: always ready
	Metrics   http.Handler   // /metrics and /stats/prometheus
	Dump      func() any     // /config_dump: a value to be encoded as JSON, made for each request
	Level     *slog.LevelVar // /logging
	Quit      func()         // /quitquitquit; must not wait for this server to end
	Sections  []Section      // /debug/: the parts of what it knows
	Process   Process        // /debug/process
	Pages     []Page         // more pages of the admin port
	Log       *slog.Logger   // nil: discarded
}

// Page is a page of the admin port.
type Page struct {
	Path    string // begins with a slash
	About   string // one line for the index
	Handler http.Handler

	post  bool   // it answers POST alone: no link leads there
	query string // of the link
}

// Listeners are where to serve; nil ones are left out. The server closes them.
type Listeners struct {
	Admin     net.Listener // loopback only: whoever reaches it controls the daemon
	Metrics   net.Listener
	Readiness net.Listener
}

// Server serves one daemon's three ports.
type Server struct {
	cfg     Config
	started time.Time
}

// New checks nothing and does nothing yet.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Readiness == nil {
		cfg.Readiness = NewReadiness()
	}
	return &Server{cfg: cfg, started: time.Now()}
}

const (
	headerTimeout = 5 * time.Second
	drainTimeout  = time.Second
)

// Run serves until ctx ends, then closes the listeners and waits for running requests for a second.
func (s *Server) Run(ctx context.Context, l Listeners) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range []struct {
		l net.Listener
		h http.Handler
	}{{l.Admin, s.AdminHandler()}, {l.Metrics, s.MetricsHandler()}, {l.Readiness, s.ReadinessHandler()}} {
		if p.l != nil {
			g.Go(func() error { return s.serve(ctx, p.l, p.h) })
		}
	}
	return g.Wait()
}

func (s *Server) serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close() // it is too late for the requests that remain
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// MetricsHandler serves the metrics port.
func (s *Server) MetricsHandler() http.Handler {
	mux := http.NewServeMux()
	if s.cfg.Metrics != nil {
		mux.Handle("GET /metrics", s.cfg.Metrics)
		mux.Handle("GET /stats/prometheus", s.cfg.Metrics)
	}
	return mux
}

// ReadinessHandler serves the readiness port.
func (s *Server) ReadinessHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz/ready", s.cfg.Readiness)
	mux.Handle("GET /readyz", s.cfg.Readiness)
	return mux
}
