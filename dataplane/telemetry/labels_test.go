// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// families is what Prometheus makes of a scrape.
func families(t *testing.T, m *Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	parser := expfmt.NewTextParser(model.LegacyValidation)
	out, err := parser.TextToMetricFamilies(rec.Body)
	if err != nil {
		t.Fatalf("Prometheus cannot read it: %v", err)
	}
	return out
}

// TestLabelSetsAreUpstreams compares with a list that was written down from upstream's, not from this code; the scenarios
// compare a running ztunnel with the same file.
func TestLabelSetsAreUpstreams(t *testing.T) {
	text, err := os.ReadFile("testdata/labels.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, labels, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(name, "#") {
			want[name] = labels
		}
	}
	m := NewMetrics("ztunnel", "v0")
	r := outbound()
	m.ConnOpened(r)
	m.ConnClosed(r)
	m.ConnFailed(plainInbound())
	m.SocketOpened(Outbound)
	m.XDSMessage("type.googleapis.com/istio.workload.Address", 1)
	m.XDSTerminated(XDSComplete)
	m.DNSRequest("A", "udp", &r.Src)
	m.DNSForwarded("A", "udp", &r.Src, 1, os.ErrClosed)
	m.OnDemandDNS(&r.Src, "db.example.com")
	checked := 0
	for name, f := range families(t, m) {
		if !strings.HasPrefix(name, "istio_") && !strings.HasPrefix(name, "workload_manager_") {
			continue
		}
		labels, ok := want[name]
		if !ok {
			t.Errorf("upstream has no metric %s", name)
			continue
		}
		checked++
		for _, metric := range f.GetMetric() {
			got := []string{strings.ToLower(f.GetType().String())}
			for _, l := range metric.GetLabel() {
				got = append(got, l.GetName())
			}
			if diff := cmp.Diff(labels, strings.Join(got, " ")); diff != "" {
				t.Errorf("%s (-upstream +ours):\n%s", name, diff)
			}
		}
	}
	if checked < 19 {
		t.Errorf("only %d metrics compared", checked)
	}
}

// FuzzExposition: whatever a peer may be called, Prometheus reads what is counted of it, under the name that it has.
func FuzzExposition(f *testing.F) {
	f.Add("web", "v1", "shop", uint64(3))
	f.Add("a\"b\\c\nd", "\x00", "ü", uint64(0))
	f.Add("\xff", "{}", "=,", uint64(1)<<62)
	f.Fuzz(func(t *testing.T, name, revision, namespace string, sent uint64) {
		m := NewMetrics("ztunnel", "v0")
		r := outbound()
		r.Src = Peer{Workload: name, CanonicalRevision: revision, Namespace: namespace}
		r.BytesSent = sent
		m.ConnOpened(r)
		m.ConnClosed(r)
		opened := families(t, m)["istio_tcp_connections_opened_total"].GetMetric()
		if len(opened) != 1 {
			t.Fatalf("%d series", len(opened))
		}
		got := map[string]string{}
		for _, l := range opened[0].GetLabel() {
			got[l.GetName()] = l.GetValue()
		}
		for label, v := range map[string]string{"source_workload": name, "source_version": revision, "source_workload_namespace": namespace} {
			if v == "" {
				v = "unknown"
			}
			if utf8.ValidString(v) && got[label] != v {
				t.Errorf("%s is %q, want %q", label, got[label], v)
			}
		}
		if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(slices.Values(trafficLabels))) {
			t.Errorf("labels %v", got)
		}
	})
}

// TestBaggageCannotBreakMetrics: a peer on another network is described by its own words.
func TestBaggageCannotBreakMetrics(t *testing.T) {
	b := ParseBaggage("k8s.deployment.name=%ff%fe,service.name=ok,k8s.namespace.name=" + strings.Repeat("x", 300))
	if b.Workload != "" || b.Service != "ok" || b.Namespace != "" {
		t.Errorf("%+v", b)
	}
	m := NewMetrics("ztunnel", "v0")
	r := outbound()
	r.Src.Workload = "\xff"
	m.ConnFailed(r)
	families(t, m)
}

// TestClaimsAreBounded: whatever a peer with one certificate says of itself, it makes few series. What it has proved stays.
func TestClaimsAreBounded(t *testing.T) {
	const said = 10 * maxClaims
	m := NewMetrics("ztunnel", "v0")
	claim := func(i int, account string) *Record {
		id := mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: account}
		b := ParseBaggage(fmt.Sprintf("k8s.cluster.name=c%d,k8s.namespace.name=other,k8s.deployment.name=w%d,service.name=s%d,cloud.region=r%d", i, i, i, i))
		r := plainInbound()
		r.Src, r.Flags = b.Peer(r.Src.Addr, id), ""
		return r
	}
	for i := range said {
		r := claim(i, "web")
		m.ConnOpened(r)
		m.ConnClosed(r)
		m.ConnFailed(claim(i, "web"))
	}
	m.ConnOpened(claim(0, "cart")) // nobody else's names are used up
	got := families(t, m)
	for name, want := range map[string]int{
		"istio_tcp_connections_opened_total": maxClaims + 2, "istio_tcp_connections_closed_total": maxClaims + 2, "istio_tcp_connections_failed_total": maxClaims + 1,
	} {
		if n := len(got[name].GetMetric()); n != want {
			t.Errorf("%s: %d series, want %d", name, n, want)
		}
	}
	total, unknown := 0.0, 0.0
	for _, metric := range got["istio_tcp_connections_failed_total"].GetMetric() {
		label := map[string]string{}
		for _, l := range metric.GetLabel() {
			label[l.GetName()] = l.GetValue()
		}
		if label["source_principal"] != "spiffe://cluster.local/ns/shop/sa/web" || label["source_workload_namespace"] != "shop" {
			t.Errorf("proved, but said to be %v", label)
		}
		if label["source_workload"] == "unknown" && label["source_cluster"] == "unknown" {
			unknown += metric.GetCounter().GetValue()
		}
		total += metric.GetCounter().GetValue()
	}
	if total != said || unknown != said-maxClaims {
		t.Errorf("%v counted, %v of them as unknown", total, unknown)
	}
	for i := range said { // a catalogue is not bounded: it is no peer's word
		r := plainInbound()
		r.Src.Workload = fmt.Sprint("w", i)
		m.ConnFailed(r)
	}
	if n := len(families(t, m)["istio_tcp_connections_failed_total"].GetMetric()); n < said {
		t.Errorf("%d series of workloads that are known", n)
	}
}
