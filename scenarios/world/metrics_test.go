// SPDX-License-Identifier: Apache-2.0

package world

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

const page = `# HELP istio_tcp_connections_opened_total The total number of TCP connections opened.
# TYPE istio_tcp_connections_opened_total counter
istio_tcp_connections_opened_total{reporter="source",source_app="a b \"c\" } d"} 3
istio_tcp_connections_opened_total{reporter="destination",source_app=""} 1
istio_tcp_connections_closed_total{reporter="source",source_app="a b \"c\" } d"} 1
istio_dns_requests_total 7
`

func TestSeries(t *testing.T) {
	s := newSeries()
	before, err := s.parse([]byte(page))
	if err != nil {
		t.Fatal(err)
	}
	if got := before.open(); got != 3 {
		t.Errorf("%v connections are open, want 3", got)
	}
	after, err := s.parse([]byte(page + "istio_tcp_connections_closed_total{reporter=\"destination\",source_app=\"\"} 1e+02\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := Samples{{Name: Closed, Labels: map[string]string{"reporter": "destination", "source_app": ""}, Value: 100}}
	if diff := cmp.Diff(want, after.since(before)); diff != "" {
		t.Errorf("what changed (-want +got):\n%s", diff)
	}
	if got := after.since(before.without(Closed)).Sum(Closed, map[string]string{"source_app": `a b "c" } d`}); got != 1 {
		t.Errorf("a series that is new counts from zero: %v, want 1", got)
	}
	for _, bad := range []string{"istio_tcp_x", "istio_tcp_x{a=\"b\"} many", "istio_tcp_x{a} 1"} {
		if got, err := s.parse([]byte(bad)); err == nil {
			t.Errorf("%q: parsed as %v", bad, got)
		}
	}
}

func (t tcpSamples) without(name string) tcpSamples {
	out := tcpSamples{}
	for k, s := range t {
		if s.Name != name {
			out[k] = s
		}
	}
	return out
}
