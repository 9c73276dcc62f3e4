// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// metrics are counters under the names of Istio's control plane. Two dozen lines of text need no client library.
type metrics struct {
	csr, issued, unauthenticated, denied atomic.Int64

	mu      sync.Mutex // guards what follows
	pushes  map[string]int64
	rejects map[string]int64
}

// Metric is a counter or gauge of a part that the server does not know.
type Metric struct {
	Name, Kind, Help string
	Value            int64
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

// Handler serves /metrics and /ready, and on loopback /debug/, which tells everything and asks nobody.
func (s *Server) Handler() http.Handler {
	pages := admin.New(admin.Config{
		Name: "control", Version: s.cfg.Version, Readiness: s.ready, Metrics: http.HandlerFunc(s.serveMetrics), Sections: s.sections(), Process: s.cfg.Process, Log: s.log,
		Dump: func() any { return s.Snapshot() },
	})
	mux := http.NewServeMux()
	mux.Handle("GET /ready", s.Ready())
	mux.HandleFunc("GET /metrics", s.serveMetrics) // not on loopback alone
	mux.Handle("/", pages.AdminHandler())
	return mux
}

func (s *Server) sections() []admin.Section {
	return []admin.Section{
		{Name: "config", About: "settings in force, and what they made of the objects", Value: s.summary, Index: true},
		{Name: "problems", About: "what is wrong with the objects", Value: func() any { return texts(s.Problems()) }, Index: true},
		{Name: "policies", About: "what became of each policy, and of each service that asks for a waypoint", Value: func() any { return s.conditions() }, Index: true},
		{Name: "proxies", About: "who is connected, and what each has acknowledged", Value: func() any { return s.Proxies() }, Index: true},
		{Name: "snapshot", About: "the mesh as it is served: workloads, services, policies", Value: func() any { return s.Snapshot() }},
		{Name: "ca", About: "who signs, which roots are trusted, and who is behind a change of them", Value: func() any { return s.AuthorityStatus() }},
		{Name: "certificates", About: "the roots that proxies are given, as PEM", Value: func() any {
			return strings.SplitAfter(string(s.cfg.Authority.RootsPEM()), "-----END CERTIFICATE-----\n")
		}},
	}
}

// summary is the state in few words.
func (s *Server) summary() any {
	out := struct {
		Settings
		Generation                    uint64 // of the view that is served; 0: not compiled yet
		Workloads, Services, Policies int
		TrustedAccounts, ServingNames []string
		CertTTL                       string
	}{Settings: s.settings, TrustedAccounts: s.cfg.TrustedAccounts, ServingNames: s.cfg.ServingNames, CertTTL: s.cfg.CertTTL.String()}
	if v := s.views.load(); v != nil {
		out.Generation = v.generation
		out.Workloads, out.Services, out.Policies = len(v.snapshot.Workloads), len(v.snapshot.Services), len(v.snapshot.Policies)
	}
	return out
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
	if s.cfg.Metrics != nil {
		for _, more := range s.cfg.Metrics() {
			one(more.Name, more.Kind, more.Help, more.Value)
		}
	}
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
