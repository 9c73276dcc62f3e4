// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/ztunnel"
)

func TestDefaultsAreUpstreams(t *testing.T) {
	s, err := parseEnviron(nil, 2)
	if err != nil {
		t.Fatal(err)
	}
	c := s.ztunnel
	for name, pair := range map[string][2]any{
		"XDS_ADDRESS":    {c.XDS.Address, "istiod.istio-system.svc:15012"},
		"CA_ADDRESS":     {c.CA.Address, "istiod.istio-system.svc:15012"},
		"XDS_ROOT_CA":    {c.XDS.RootCAFile, "./var/run/secrets/istio/root-cert.pem"},
		"token":          {c.XDS.TokenFile, "./var/run/secrets/tokens/istio-token"},
		"INPOD_UDS":      {c.ZDSPath, "/var/run/ztunnel/ztunnel.sock"},
		"CLUSTER_ID":     {c.ClusterID, "Kubernetes"},
		"CLUSTER_DOMAIN": {c.ClusterDomain, "cluster.local"},
		"IPV6_ENABLED":   {c.IPv6, true},
		"PACKET_MARK":    {c.Mark, uint32(1337)},
		"SECRET_TTL":     {c.CA.TTL, 24 * time.Hour},
		"POOL_UNUSED":    {c.HBONE.IdleFor, 5 * time.Minute},
		"KEEPALIVE":      {c.TCP, ztunnel.TCP{KeepAlive: true, KeepAliveIdle: 180 * time.Second, KeepAliveInterval: 180 * time.Second, KeepAliveCount: 9}},
		"timers": {c.Time, ztunnel.Timers{
			Drain: 5 * time.Second, LocalWorkload: 5 * time.Second, Connect: 10 * time.Second, Retry: 5 * time.Second,
			Certificate: ztunnel.Backoff{Min: time.Second, Max: 150 * time.Second},
			XDS:         ztunnel.Backoff{Min: 10 * time.Millisecond, Max: 15 * time.Second},
			ZDS:         ztunnel.Backoff{Min: 10 * time.Millisecond, Max: 15 * time.Second},
		}},
		"ping":             {[]time.Duration{c.HBONE.PingInterval, c.HBONE.PingTimeout}, []time.Duration{10 * time.Second, 20 * time.Second}},
		"ORIG_SRC":         {c.PreserveSource, ztunnel.SourceAuto},
		"LOCALHOST_APP":    {c.LocalhostAppTunnel, true},
		"level":            {s.logLevel, slog.LevelInfo},
		"INPOD_PORT_REUSE": {c.ReusePort, true},
		"RESPONSE_BAGGAGE": {c.ResponseBaggage, true},
		"threads":          {s.threads, 2},
	} {
		if d := cmp.Diff(pair[1], pair[0]); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	if c.Dedicated != nil {
		t.Errorf("dedicated by default: %+v", c.Dedicated)
	}
}

func TestLocalNeedsNobody(t *testing.T) {
	s, err := parseEnviron([]string{"LOCAL_XDS_PATH=/x.yaml", "FAKE_CA=true", "XDS_ADDRESS="}, 2)
	if err != nil {
		t.Fatal(err)
	}
	if s.ztunnel.XDS.Address != "" || s.ztunnel.CA.Address != "" || !s.ztunnel.CA.Fake || s.ztunnel.Local.Path != "/x.yaml" {
		t.Errorf("got %+v", s.ztunnel)
	}
}

func TestEnvironment(t *testing.T) {
	s, err := parseEnviron([]string{
		"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=shop/cart/cart-sa", "XDS_ADDRESS=control:15012", "CA_ADDRESS=https://[fd00::1]:15013",
		"XDS_HEADER_X-A=b", "CA_HEADER_C=d", "LOG_FORMAT=json", "RUST_LOG=access=debug,warn", "POD_NAME=ztunnel-x", "POD_NAMESPACE=istio-system",
		"INSTANCE_IP=10.0.0.9", "NODE_NAME=node1", "NETWORK=n1", "HTTP2_STREAM_WINDOW_SIZE=1048576", "HBONE_QUEUE_BUDGET=8388608", "POOL_UNUSED_RELEASE_TIMEOUT=30s",
		"ISTIO_METAJSON_X={\"a\":\"b\"}", "PACKET_MARK=0x539", "ZTUNNEL_WORKER_THREADS=50%", "SECRET_TTL=1d",
	}, 8)
	if err != nil {
		t.Fatal(err)
	}
	c := s.ztunnel
	want := ztunnel.XDS{
		Address: "control:15012", RootCAFile: defaultRootCA, TokenFile: tokenFile,
		Headers: map[string]string{"x-a": "b"}, Metadata: map[string]any{"a": "b"},
	}
	if d := cmp.Diff(want, c.XDS); d != "" {
		t.Errorf("xds (-want +got):\n%s", d)
	}
	if d := cmp.Diff(&ztunnel.Info{Namespace: "shop", Name: "cart", ServiceAccount: "cart-sa"}, c.Dedicated); d != "" {
		t.Errorf("dedicated (-want +got):\n%s", d)
	}
	if c.CA.Address != "[fd00::1]:15013" || c.CA.TTL != 24*time.Hour || s.threads != 4 || !s.logJSON || s.logLevel != slog.LevelWarn ||
		c.Pod.IP != netip.MustParseAddr("10.0.0.9") || c.HBONE.StreamWindow != 1<<20 || c.HBONE.QueueBudget != 8<<20 || c.HBONE.IdleFor != 30*time.Second || c.Mark != 1337 {
		t.Errorf("got %+v", s)
	}
}

func TestEveryMistakeIsReported(t *testing.T) {
	bad := map[string]string{ // variable: what its message says of the cure
		"PROXY_MODE":                      "shared or dedicated",
		"PROXY_WORKLOAD_INFO":             "",
		"IPV6_ENABLED":                    "true or false",
		"PACKET_MARK":                     "number from 1",
		"XDS_ADDRESS":                     "https://host:port",
		"CA_ADDRESS":                      "port",
		"SECRET_TTL":                      "duration",
		"INSTANCE_IP":                     "IP address",
		"LOG_FORMAT":                      "plain or json",
		"LOG_LEVEL":                       "info, debug",
		"CONNECTION_TERMINATION_DEADLINE": "duration",
		"ZTUNNEL_WORKER_THREADS":          "25%",
		"TLS12_ENABLED":                   "unset it",
		"COMPLIANCE_POLICY":               "unset it",
		"XDS_ON_DEMAND":                   "unset it",
		"UNSTABLE_ENABLE_SOCKS5":          "unset it",
		"HTTP2_FRAME_SIZE":                "16384",
		"ISTIO_METAJSON_A":                "JSON object",
	}
	values := map[string]string{
		"XDS_ADDRESS": "http://x:1", "CA_ADDRESS": "x:99999", "TLS12_ENABLED": "true", "XDS_ON_DEMAND": "1",
		"UNSTABLE_ENABLE_SOCKS5": "yes", "COMPLIANCE_POLICY": "pqc", "HTTP2_FRAME_SIZE": "1",
	}
	var environ []string
	for k := range bad {
		v := values[k]
		if v == "" {
			v = "nonsense"
		}
		environ = append(environ, k+"="+v)
	}
	delete(bad, "PROXY_WORKLOAD_INFO") // without a mode nobody can say what it means
	_, err := parseEnviron(environ, 2)
	if err == nil {
		t.Fatal("accepted")
	}
	for k, cure := range bad {
		found := false
		for line := range strings.SplitSeq(err.Error(), "\n") {
			found = found || strings.HasPrefix(line, k+"=") && strings.Contains(line, cure)
		}
		if !found {
			t.Errorf("no line about %s with %q in:\n%v", k, cure, err)
		}
	}
}

func TestContradictions(t *testing.T) {
	for _, c := range []struct {
		name    string
		environ []string
		want    string
	}{
		{"the test root and a real CA", []string{"FAKE_CA=true", "CA_ADDRESS=x:1"}, "FAKE_CA"},
		{"nobody signs", []string{"CA_ADDRESS="}, "CA_ADDRESS"},
		{"no configuration", []string{"XDS_ADDRESS="}, "LOCAL_XDS_PATH"},
		{"two local documents", []string{"LOCAL_XDS=a", "LOCAL_XDS_PATH=b"}, "LOCAL_XDS_PATH"},
		{"dedicated to nobody", []string{"PROXY_MODE=dedicated"}, "namespace/name/service-account"},
		{"shared and dedicated", []string{"PROXY_WORKLOAD_INFO=a/b/c"}, "PROXY_MODE=dedicated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseEnviron(c.environ, 2)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that names %s", err, c.want)
			}
		})
	}
}

func TestDrainTimeout(t *testing.T) {
	for _, c := range []struct {
		environ []string
		want    time.Duration
	}{
		{nil, 5 * time.Second},
		{[]string{"TERMINATION_GRACE_PERIOD_SECONDS=30"}, 25 * time.Second},
		{[]string{"TERMINATION_GRACE_PERIOD_SECONDS=10"}, 9 * time.Second},
		{[]string{"TERMINATION_GRACE_PERIOD_SECONDS=5"}, 4 * time.Second},
		{[]string{"TERMINATION_GRACE_PERIOD_SECONDS=1"}, time.Second},
		{[]string{"TERMINATION_GRACE_PERIOD_SECONDS=30", "CONNECTION_TERMINATION_DEADLINE=2s"}, 2 * time.Second},
	} {
		s, err := parseEnviron(c.environ, 2)
		if err != nil {
			t.Fatal(err)
		}
		if s.ztunnel.Time.Drain != c.want {
			t.Errorf("%v: %s, want %s", c.environ, s.ztunnel.Time.Drain, c.want)
		}
	}
}

// TestTimers: every wait can be shortened by a scenario, under the name that the package comment gives it.
func TestTimers(t *testing.T) {
	s, err := parseEnviron([]string{
		"LOCAL_WORKLOAD_TIMEOUT=1s", "CONNECT_TIMEOUT=2s", "PROXY_RETRY_INTERVAL=3s", "HBONE_PING_INTERVAL=4s", "HBONE_PING_TIMEOUT=5s",
		"CERT_BACKOFF_MIN=6s", "CERT_BACKOFF_MAX=7s", "XDS_BACKOFF_MAX=1ms", "ZDS_BACKOFF_MIN=20s", "CONNECTION_TERMINATION_DEADLINE=8s",
	}, 2)
	if err != nil {
		t.Fatal(err)
	}
	want := ztunnel.Timers{
		Drain: 8 * time.Second, LocalWorkload: time.Second, Connect: 2 * time.Second, Retry: 3 * time.Second,
		Certificate: ztunnel.Backoff{Min: 6 * time.Second, Max: 7 * time.Second},
		XDS:         ztunnel.Backoff{Min: time.Millisecond, Max: time.Millisecond},
		ZDS:         ztunnel.Backoff{Min: 20 * time.Second, Max: 20 * time.Second},
	}
	if d := cmp.Diff(want, s.ztunnel.Time); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if h := s.ztunnel.HBONE; h.PingInterval != 4*time.Second || h.PingTimeout != 5*time.Second {
		t.Errorf("ping every %s, timeout %s", h.PingInterval, h.PingTimeout)
	}
	if _, err := parseEnviron([]string{"ZDS_BACKOFF_MIN=2s", "ZDS_BACKOFF_MAX=1s"}, 2); err == nil || !strings.Contains(err.Error(), "ZDS_BACKOFF_MIN") {
		t.Errorf("bounds the wrong way round: %v", err)
	}
}

func TestSourceModes(t *testing.T) {
	for value, want := range map[string]ztunnel.SourceMode{
		"": ztunnel.SourceAuto, "true": ztunnel.SourceKept, "false": ztunnel.SourceOwn,
	} {
		s, err := parseEnviron([]string{"ENABLE_ORIG_SRC=" + value, "LOCALHOST_APP_TUNNEL=false"}, 2)
		if err != nil || s.ztunnel.PreserveSource != want || s.ztunnel.LocalhostAppTunnel {
			t.Errorf("%q: mode %d, loopback %v, %v", value, s.ztunnel.PreserveSource, s.ztunnel.LocalhostAppTunnel, err)
		}
	}
}
