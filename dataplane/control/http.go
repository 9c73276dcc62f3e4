// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// metrics are counters under the names of Istio's control plane. Two dozen lines of text need no client library.
type metrics struct {
	csr, issued, unauthenticated, denied atomic.Int64

	mu      sync.Mutex // guards what follows
	pushes  map[string]int64
	rejects map[string]int64
}

func (m *metrics) pushed(url string)   { m.count(&m.pushes, url) }
func (m *metrics) rejected(url string) { m.count(&m.rejects, url) }

func (m *metrics) count(to *map[string]int64, url string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if *to == nil {
		*to = map[string]int64{}
	}
	(*to)[url]++
}

// Ready answers 200 once the mesh has been compiled.
func (s *Server) Ready() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if s.views.load() == nil {
			http.Error(w, "not ready, pending: objects", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
}

// Handler serves /metrics, /ready and /debug/. It tells everything and asks nobody: keep it on loopback.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /ready", s.Ready())
	mux.HandleFunc("GET /metrics", s.serveMetrics)
	mux.HandleFunc("GET /debug/{$}", s.serveDebug)
	mux.HandleFunc("GET /debug/snapshot", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Snapshot()) })
	mux.HandleFunc("GET /debug/policies", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.conditions()) })
	mux.HandleFunc("GET /debug/proxies", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Proxies()) })
	mux.HandleFunc("GET /debug/problems", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, texts(s.Problems())) })
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

func texts(problems []source.Problem) []string {
	out := make([]string, 0, len(problems))
	for _, p := range problems {
		out = append(out, p.Error())
	}
	return out
}

// conditions are never nil, so that JSON says "none" and not "unknown".
func (s *Server) conditions() []Condition {
	if v := s.Snapshot(); v != nil && v.Conditions != nil {
		return v.Conditions
	}
	return []Condition{}
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(data, '\n'))
}

func (s *Server) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	metric := func(name, kind, help string, lines ...string) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s\n", name, help, name, kind, strings.Join(lines, "\n"))
	}
	one := func(name, kind, help string, n int64) { metric(name, kind, help, fmt.Sprintf("%s %d", name, n)) }
	m := &s.metrics
	one("pilot_xds", "gauge", "Proxies connected to the discovery service.", int64(len(s.Proxies())))
	one("pilot_object_problems", "gauge", "Things that are wrong with the objects now.", int64(len(s.Problems())))
	one("citadel_server_csr_count", "counter", "Certificate requests.", m.csr.Load())
	one("citadel_server_success_cert_issuance_count", "counter", "Certificates issued.", m.issued.Load())
	one("citadel_server_authentication_failure_count", "counter", "Certificate requests whose caller could not be told.", m.unauthenticated.Load())
	one("citadel_server_authorization_failure_count", "counter", "Certificate requests for an identity that the caller may not have.", m.denied.Load())
	m.mu.Lock()
	metric("pilot_xds_pushes", "counter", "Responses by type.", byType("pilot_xds_pushes", m.pushes)...)
	metric("pilot_total_xds_rejects", "counter", "Responses that a proxy rejected in part, by type.", byType("pilot_total_xds_rejects", m.rejects)...)
	m.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write([]byte(b.String()))
}

func byType(name string, counts map[string]int64) []string {
	var out []string
	for url, n := range counts {
		out = append(out, fmt.Sprintf("%s{type=%q} %d", name, url, n))
	}
	slices.Sort(out)
	return out
}

var debugPage = template.Must(template.New("debug").Parse(`<!DOCTYPE html><meta charset="utf-8"><title>control</title>
<h1>control</h1>
<p>Cluster {{.Settings.ClusterID}}, trust domain {{.Settings.TrustDomain}}, domain {{.Settings.Domain}}.
{{with .View}}Version {{.}}.{{else}}Not compiled yet.{{end}} {{.Workloads}} workloads, {{.Services}} services, {{.Policies}} policies.</p>
<p><a href="snapshot">snapshot</a> <a href="policies">policies</a> <a href="proxies">proxies</a> <a href="problems">problems</a> <a href="pprof/">pprof</a> <a href="/metrics">metrics</a></p>
<h2>Problems</h2>
<ul>{{range .Problems}}<li>{{.}}</li>{{else}}<li>none</li>{{end}}</ul>
<h2>Policies</h2>
<table border="1"><tr><th>object</th><th>served to ztunnel</th><th>reason</th><th>message</th></tr>
{{range .Conditions}}<tr><td>{{.Object}}</td><td>{{.Accepted}}</td><td>{{.Reason}}</td><td>{{.Message}}</td></tr>{{end}}</table>
<h2>Proxies</h2>
<table border="1"><tr><th>node</th><th>account</th><th>remote</th><th>since</th><th>type</th><th>sent</th><th>acked</th><th>rejected</th></tr>
{{range $p := .Proxies}}{{range $t, $s := $p.Types}}<tr><td>{{$p.Node}}</td><td>{{$p.Account}}</td><td>{{$p.Remote}}</td><td>{{$p.Since.Format "15:04:05"}}</td>
<td>{{$t}}</td><td>{{$s.SentVersion}}</td><td>{{$s.AckedVersion}}</td><td>{{$s.Rejected}}</td></tr>{{end}}{{end}}</table>
`))

func (s *Server) serveDebug(w http.ResponseWriter, _ *http.Request) {
	page := struct {
		Settings                      Settings
		View                          uint64
		Workloads, Services, Policies int
		Problems                      []string
		Conditions                    []Condition
		Proxies                       []Proxy
	}{Settings: s.settings, Problems: texts(s.Problems()), Conditions: s.conditions(), Proxies: s.Proxies()}
	if v := s.views.load(); v != nil {
		page.View = v.generation
		page.Workloads, page.Services, page.Policies = len(v.snapshot.Workloads), len(v.snapshot.Services), len(v.snapshot.Policies)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = debugPage.Execute(w, page)
}
