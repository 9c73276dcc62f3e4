// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"strings"
	"time"
)

// AdminHandler serves the admin port.
func (s *Server) AdminHandler() http.Handler {
	pages := s.pages()
	mux := http.NewServeMux()
	for _, p := range pages {
		mux.Handle(p.Path, p.Handler)
	}
	index := s.index(pages)
	mux.Handle("GET /{$}", index)
	mux.Handle("GET /debug/{$}", index)
	mux.Handle("GET /debug/pprof/{$}", index)
	// A browser that reaches this port, by a port-forward, sends no other site's forms here.
	return onLoopback(http.NewCrossOriginProtection().Handler(mux))
}

// pages are all pages but the index. Profiles are served by hand: net/http/pprof would register on the default mux of
// every program that links this package.
func (s *Server) pages() []Page {
	var pages []Page
	add := func(path, about string, h http.HandlerFunc) {
		pages = append(pages, Page{Path: path, About: about, Handler: h})
	}
	post := func(path, about string, h http.HandlerFunc) {
		pages = append(pages, Page{Path: path, About: about, Handler: h, post: true})
	}
	for _, sec := range s.sections() {
		add(sec.path(), sec.About, s.section(sec))
	}
	if s.cfg.Dump != nil {
		add("/config_dump", "everything that the daemon knows, as JSON", s.configDump)
	}
	if s.cfg.Level != nil {
		post("/logging", "POST: show the log level; POST ?level=<level>: change it", s.logging)
	}
	if s.cfg.Quit != nil {
		post("/quitquitquit", "POST: drain and end", s.quit)
	}
	add("/healthz/ready", "whether it is ready, and what it waits for", s.cfg.Readiness.ServeHTTP)
	if s.cfg.Metrics != nil {
		add("/metrics", "metrics for Prometheus", s.cfg.Metrics.ServeHTTP)
	}
	pages = append(pages, s.cfg.Pages...)
	profile := func(name, about, query string, h http.HandlerFunc) {
		pages = append(pages, Page{Path: "/debug/pprof/" + name, About: about, Handler: h, query: query})
	}
	profile("profile", "CPU profile; ?seconds=10", "", cpuProfile)
	profile("trace", "execution trace; ?seconds=1", "", execTrace)
	for _, name := range []string{"heap", "allocs", "goroutine", "threadcreate", "block", "mutex"} {
		profile(name, name+" profile; ?debug=1 for text", "?debug=1", namedProfile(name))
	}
	return pages
}

func (s *Server) configDump(w http.ResponseWriter, _ *http.Request) { s.writeJSON(w, s.cfg.Dump()) }

const loggingHelp = `
usage: POST /logging                (to show the current level)
usage: POST /logging?level=<level>  (to change it)

hint: loglevel: error|warn|info|debug|trace|off
`

// Levels beyond slog's own: trace is everything, off nothing.
const (
	levelTrace = slog.LevelDebug - 4
	levelOff   = slog.LevelError + 4
)

func (s *Server) logging(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "Invalid HTTP method\n"+loggingHelp, http.StatusMethodNotAllowed)
		return
	}
	if want := r.URL.Query().Get("level"); want != "" {
		l, err := ParseLevel(want)
		if err != nil {
			http.Error(w, "Invalid level provided: "+want+"\n"+loggingHelp, http.StatusBadRequest)
			return
		}
		s.cfg.Level.Set(l)
	}
	fmt.Fprintf(w, "current log level is %s\n", levelName(s.cfg.Level.Level()))
}

// ParseLevel reads a log level by upstream's names: error, warn, info, debug, trace, off.
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "off":
		return levelOff, nil
	case "error":
		return slog.LevelError, nil
	case "warn":
		return slog.LevelWarn, nil
	case "info":
		return slog.LevelInfo, nil
	case "debug":
		return slog.LevelDebug, nil
	case "trace":
		return levelTrace, nil
	default:
		return 0, fmt.Errorf("parse level %q: want error, warn, info, debug, trace or off", s)
	}
}

func levelName(l slog.Level) string {
	switch {
	case l >= levelOff:
		return "off"
	case l <= levelTrace:
		return "trace"
	default:
		return strings.ToLower(l.String())
	}
}

func (s *Server) quit(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	fmt.Fprint(w, "shutdown now\n")
	s.cfg.Quit()
}

func cpuProfile(w http.ResponseWriter, r *http.Request) {
	binary(w)
	if err := pprof.StartCPUProfile(w); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	wait(r, 10*time.Second)
	pprof.StopCPUProfile()
}

func execTrace(w http.ResponseWriter, r *http.Request) {
	binary(w)
	if err := trace.Start(w); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	wait(r, time.Second)
	trace.Stop()
}

func binary(w http.ResponseWriter) { w.Header().Set("Content-Type", "application/octet-stream") }

// wait lasts ?seconds=, or until the client is gone.
func wait(r *http.Request, d time.Duration) {
	if n, err := strconv.ParseFloat(r.URL.Query().Get("seconds"), 64); err == nil && n > 0 && n < 3600 {
		d = time.Duration(n * float64(time.Second))
	}
	select {
	case <-time.After(d):
	case <-r.Context().Done():
	}
}

func namedProfile(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		debug, _ := strconv.Atoi(r.URL.Query().Get("debug"))
		if debug == 0 {
			binary(w)
		}
		_ = pprof.Lookup(name).WriteTo(w, debug)
	}
}
