// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func testServer() (*Server, *Readiness, *slog.LevelVar, *int) {
	ready, level, quits := NewReadiness("proxy", "state"), new(slog.LevelVar), new(int)
	return New(Config{
		Name: "ztunnel", Version: "<v0>", Readiness: ready, Level: level, Quit: func() { *quits++ },
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "metric 1\n") }),
		Dump:    func() any { return Dump{} },
		Pages:   []Page{{Path: "/debug/conns", About: "open connections", Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}},
	}), ready, level, quits
}

func request(h http.Handler, method, target string) (int, string) {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(method, target, nil))
	return rec.Code, rec.Body.String()
}

func TestReadiness(t *testing.T) {
	s, ready, _, _ := testServer()
	for _, step := range []struct {
		do   func()
		code int
		body string
	}{
		{func() {}, 500, "not ready, pending: proxy, state\n"},
		{func() { ready.Done("proxy") }, 500, "not ready, pending: state\n"},
		{func() { ready.Done("proxy"); ready.Done("state") }, 200, "ready\n"},
		{func() { ready.Pend("zds"); ready.Pend("zds") }, 500, "not ready, pending: zds\n"},
		{func() { ready.Done("zds") }, 200, "ready\n"},
	} {
		step.do()
		for _, path := range []string{"/healthz/ready", "/readyz"} {
			if code, body := request(s.ReadinessHandler(), "GET", path); code != step.code || body != step.body {
				t.Errorf("%s: %d %q, want %d %q", path, code, body, step.code, step.body)
			}
		}
	}
}

func TestLogging(t *testing.T) {
	s, _, level, _ := testServer()
	for _, tt := range []struct {
		method, target string
		code           int
		says           string
		level          slog.Level
	}{
		{"POST", "/logging", 200, "current log level is info", slog.LevelInfo},
		{"POST", "/logging?level=debug", 200, "current log level is debug", slog.LevelDebug},
		{"POST", "/logging?level=trace", 200, "current log level is trace", levelTrace},
		{"POST", "/logging?level=off", 200, "current log level is off", levelOff},
		{"POST", "/logging?level=loud", 400, "Invalid level provided: loud", levelOff},
		{"GET", "/logging?level=info", 405, "Invalid HTTP method", levelOff},
		{"POST", "/logging?level=warn", 200, "current log level is warn", slog.LevelWarn},
		{"POST", "/logging?level=error", 200, "current log level is error", slog.LevelError},
	} {
		code, body := request(s.AdminHandler(), tt.method, tt.target)
		if code != tt.code || !strings.Contains(body, tt.says) || level.Level() != tt.level {
			t.Errorf("%s %s: %d %q, level %v", tt.method, tt.target, code, body, level.Level())
		}
	}
}

func TestPages(t *testing.T) {
	s, _, _, quits := testServer()
	for _, tt := range []struct {
		h              http.Handler
		method, target string
		code           int
		says           string
	}{
		{s.AdminHandler(), "GET", "/", 200, `<a href="/config_dump">`},
		{s.AdminHandler(), "GET", "/debug/", 200, `<a href="/debug/conns">`},
		{s.AdminHandler(), "GET", "/", 200, "ztunnel &lt;v0&gt;"},
		{s.AdminHandler(), "GET", "/nowhere", 404, ""},
		{s.AdminHandler(), "GET", "/config_dump", 200, `"workloads": []`},
		{s.AdminHandler(), "GET", "/quitquitquit", 405, ""},
		{s.AdminHandler(), "POST", "/quitquitquit", 200, "shutdown now"},
		{s.AdminHandler(), "GET", "/debug/pprof/goroutine?debug=1", 200, "goroutine profile:"},
		{s.AdminHandler(), "GET", "/debug/pprof/heap", 200, ""},
		{s.AdminHandler(), "GET", "/debug/pprof/profile?seconds=0.01", 200, ""},
		{s.AdminHandler(), "GET", "/debug/pprof/trace?seconds=0.01", 200, ""},
		{s.MetricsHandler(), "GET", "/metrics", 200, "metric 1"},
		{s.MetricsHandler(), "GET", "/stats/prometheus", 200, "metric 1"},
		{s.MetricsHandler(), "GET", "/debug/pprof/heap", 404, ""},
		{s.MetricsHandler(), "GET", "/config_dump", 404, ""},
		{New(Config{}).AdminHandler(), "GET", "/config_dump", 404, ""},
		{New(Config{}).ReadinessHandler(), "GET", "/healthz/ready", 200, "ready\n"},
	} {
		if code, body := request(tt.h, tt.method, tt.target); code != tt.code || !strings.Contains(body, tt.says) {
			t.Errorf("%s %s: %d %q", tt.method, tt.target, code, body)
		}
	}
	if *quits != 1 {
		t.Errorf("told to quit %d times", *quits)
	}
	if _, pattern := http.DefaultServeMux.Handler(httptest.NewRequest(http.MethodGet, "/debug/pprof/", nil)); pattern != "" {
		t.Errorf("the default mux serves %s", pattern)
	}
}

func TestRun(t *testing.T) {
	s, ready, _, _ := testServer()
	ready.Done("proxy")
	ready.Done("state")
	var ls Listeners
	for _, p := range []*net.Listener{&ls.Admin, &ls.Metrics, &ls.Readiness} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		*p = l
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ls) }()
	for _, url := range []string{ls.Admin.Addr().String() + "/", ls.Metrics.Addr().String() + "/metrics", ls.Readiness.Addr().String() + "/healthz/ready"} {
		resp, err := http.Get("http://" + url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", url, resp.Status)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", ls.Admin.Addr().String()); err == nil {
		c.Close()
		t.Error("the admin port is still open")
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestRunReportsABrokenListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := New(Config{}).Run(t.Context(), Listeners{Admin: l}); err == nil {
		t.Error("no error")
	}
}
