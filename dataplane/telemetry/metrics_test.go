// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// exposed is the lines that Prometheus would read which begin with one of prefixes.
func exposed(t *testing.T, m *Metrics, prefixes ...string) string {
	t.Helper()
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	var b strings.Builder
	for line := range strings.Lines(rec.Body.String()) {
		for _, p := range prefixes {
			if strings.HasPrefix(line, p) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

func TestMetricsGolden(t *testing.T) {
	m := NewMetrics("ztunnel", "v0")
	out, in := outbound(), outbound()
	in.Direction, in.BytesSent, in.BytesRecv = Inbound, 358, 84
	denied := plainInbound()
	for _, r := range []*Record{out, in} {
		m.ConnOpened(r)
		m.ConnClosed(r)
	}
	m.ConnFailed(denied)
	m.ConnFailed(denied)
	m.SocketOpened(Outbound)
	m.XDSMessage("type.googleapis.com/istio.workload.Address", 100)
	m.XDSTerminated(XDSReconnect)
	m.ProxyStarted()
	m.ProxyStopped()
	m.SetProxies(1, 2)
	m.DNSRequest("A", "udp", &out.Src)
	m.DNSForwarded("A", "udp", &Peer{}, time.Millisecond, errors.New("timeout"))
	golden(t, "metrics.txt", exposed(t, m, "istio_", "workload_manager_", "# TYPE istio_", "# TYPE workload_manager_"))
	if got := exposed(t, m, "process_open_fds", "process_max_fds", "go_goroutines"); strings.Count(got, "\n") != 3 {
		t.Errorf("process metrics: %q", got)
	}
}

// TestReportersAgree holds that the client's and the server's proxy count the same bytes under the same name.
func TestReportersAgree(t *testing.T) {
	m := NewMetrics("ztunnel", "v0")
	out, in := outbound(), outbound()
	in.Direction, in.BytesSent, in.BytesRecv = Inbound, out.BytesRecv, out.BytesSent
	m.ConnClosed(out)
	m.ConnClosed(in)
	for name, want := range map[string]string{"istio_tcp_received_bytes_total": " 84\n", "istio_tcp_sent_bytes_total": " 358\n"} {
		if got := exposed(t, m, name); strings.Count(got, want) != 2 {
			t.Errorf("%s is not%sfor both:\n%s", name, want, got)
		}
	}
}

// TestClosedKeepsItsLabels holds that what is learned between open and close does not split a connection's series.
func TestClosedKeepsItsLabels(t *testing.T) {
	m := NewMetrics("ztunnel", "v0")
	r := outbound()
	m.ConnOpened(r)
	r.Service, r.Flags = "other", FlagConnect
	m.ConnClosed(r)
	opened := strings.ReplaceAll(exposed(t, m, "istio_tcp_connections_opened_total"), "opened", "X")
	closed := strings.ReplaceAll(exposed(t, m, "istio_tcp_connections_closed_total"), "closed", "X")
	if opened != closed {
		t.Errorf("opened\n%s\nclosed\n%s", opened, closed)
	}
}

func TestAgentMetricsGolden(t *testing.T) {
	m := NewAgentMetrics("v0")
	m.PluginRequest(200)
	m.Reconciled("add")
	m.Installed(true)
	m.Installed(false)
	m.SetReady(true)
	m.SetConnected(1)
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	var b strings.Builder
	for line := range strings.Lines(rec.Body.String()) {
		if !strings.Contains(line, "go_") && !strings.Contains(line, "process_") {
			b.WriteString(line)
		}
	}
	golden(t, "agent.txt", b.String())
}

func TestMetricsConcurrent(t *testing.T) {
	m := NewMetrics("ztunnel", "v0")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				r := outbound()
				m.ConnOpened(r)
				m.ConnClosed(r)
				m.ConnFailed(r)
			}
		})
	}
	wg.Wait()
	if got := exposed(t, m, "istio_tcp_connections_closed_total"); !strings.Contains(got, " 1600\n") {
		t.Errorf("%s", got)
	}
}

func TestOpenAndCloseDoNotAllocate(t *testing.T) {
	m := NewMetrics("ztunnel", "v0")
	r := outbound()
	m.ConnOpened(r)
	if n := testing.AllocsPerRun(100, func() { m.ConnOpened(r); m.ConnClosed(r) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkOpenClose(b *testing.B) {
	m := NewMetrics("ztunnel", "v0")
	r := outbound()
	b.ReportAllocs()
	for b.Loop() {
		m.ConnOpened(r)
		m.ConnClosed(r)
	}
}

// TestBytesOfLiveConnections holds that a scrape sees the bytes of connections that go on, and that none is counted twice.
func TestBytesOfLiveConnections(t *testing.T) {
	m := NewMetrics("ztunnel", "v0")
	r := outbound()
	m.ConnOpened(r)
	moved := uint64(0)
	m.OnScrape(func() { m.ConnProgress(r, moved, 2*moved) })
	check := func(request, response string) {
		t.Helper()
		if got := exposed(t, m, "istio_tcp_received_bytes_total"); !strings.HasSuffix(got, request) {
			t.Errorf("request: got %q, want%q", got, request)
		}
		if got := exposed(t, m, "istio_tcp_sent_bytes_total"); !strings.HasSuffix(got, response) {
			t.Errorf("response: got %q, want%q", got, response)
		}
	}
	for _, moved = range []uint64{10, 10, 25} {
		check(fmt.Sprintf(" %d\n", moved), fmt.Sprintf(" %d\n", 2*moved))
	}
	m.OnScrape(nil)
	r.BytesSent, r.BytesRecv = 30, 50
	m.ConnClosed(r)
	check(" 30\n", " 50\n")
	if n := testing.AllocsPerRun(100, func() { moved++; m.ConnProgress(r, moved+30, moved+50) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
