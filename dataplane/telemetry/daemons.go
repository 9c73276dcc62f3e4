// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// XDSMessage counts a message of n bytes with resources of the type url.
func (m *Metrics) XDSMessage(url string, n int) {
	m.xdsMessages.WithLabelValues(url).Inc()
	m.xdsBytes.WithLabelValues(url).Add(float64(n))
}

// Reasons for the end of a connection to the control plane.
const (
	XDSConnectionError = "ConnectionError" // it could not be established
	XDSError           = "Error"           // it was established and broke
	XDSReconnect       = "Reconnect"       // we ended it to make a new one
	XDSComplete        = "Complete"        // the server ended it cleanly
)

// XDSTerminated counts the end of a connection to the control plane.
func (m *Metrics) XDSTerminated(reason string) { m.xdsTerminations.WithLabelValues(reason).Inc() }

// ProxyStarted and ProxyStopped count proxies over time; SetProxies says how many there are now.
func (m *Metrics) ProxyStarted() { m.proxiesStarted.Inc() }

// ProxyStopped is ProxyStarted's counterpart.
func (m *Metrics) ProxyStopped() { m.proxiesStopped.Inc() }

// SetProxies sets the number of proxies that run and of those that wait to be started again.
func (m *Metrics) SetProxies(active, pending int) {
	m.proxiesActive.Set(float64(active))
	m.proxiesPending.Set(float64(pending))
}

// SetStaleCRL says whether revocation lists are not those that their file holds now.
func (m *Metrics) SetStaleCRL(stale bool) { m.staleCRL.Set(number(stale)) }

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

type dnsMetrics struct {
	requests, upstream, failures *prometheus.CounterVec
	duration                     *prometheus.HistogramVec
}

var dnsLabels = []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}

func (d *dnsMetrics) register(r registrar) {
	d.requests = r.counters("istio_dns_requests_total", "DNS requests.", dnsLabels...)
	d.upstream = r.counters("istio_dns_upstream_requests_total", "DNS requests forwarded.", dnsLabels...)
	d.failures = r.counters("istio_dns_upstream_failures_total", "DNS requests forwarded that failed.", dnsLabels...)
	d.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "istio_dns_upstream_request_duration_seconds", Help: "How long forwarded DNS requests took.",
		Buckets: []float64{.0005, .001, .01, .1, 1, 5},
	}, dnsLabels)
	r.MustRegister(d.duration)
}

// DNSRequest counts a query by an application; protocol is "udp" or "tcp".
func (m *Metrics) DNSRequest(queryType, protocol string, src *Peer) {
	m.dns.requests.WithLabelValues(dnsValues(queryType, protocol, src)...).Inc()
}

// DNSForwarded counts a query that was passed on to a resolver, and its outcome.
func (m *Metrics) DNSForwarded(queryType, protocol string, src *Peer, took time.Duration, err error) {
	v := dnsValues(queryType, protocol, src)
	m.dns.upstream.WithLabelValues(v...).Inc()
	m.dns.duration.WithLabelValues(v...).Observe(took.Seconds())
	if err != nil {
		m.dns.failures.WithLabelValues(v...).Inc()
	}
}

func dnsValues(queryType, protocol string, src *Peer) []string {
	return known([]string{queryType, protocol, src.CanonicalName, src.CanonicalRevision})
}

var onDemandLabels = []string{
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster", "hostname",
}

// OnDemandDNS counts a connection by src to an endpoint that has no address but a host name. Its identity is the one that
// src should have.
func (m *Metrics) OnDemandDNS(src *Peer, hostname string) {
	l := peerLabelsOf(src)
	v := []string{l.workload, l.canonical, l.revision, l.namespace, l.identity.String(), l.app, l.version, l.cluster, hostname}
	m.onDemand.WithLabelValues(known(v)...).Inc()
}

// AgentMetrics counts what a node agent does, under Istio's names.
type AgentMetrics struct {
	registry  *prometheus.Registry
	plugin    *prometheus.CounterVec
	reconcile *prometheus.CounterVec
	drift     *prometheus.CounterVec
	installs  *prometheus.CounterVec
	ready     prometheus.Gauge
	connected prometheus.Gauge
}

// NewAgentMetrics makes the metrics of one agent in a registry of its own.
func NewAgentMetrics(version string) *AgentMetrics {
	m := &AgentMetrics{registry: newRegistry("cni-agent", version)}
	r := registrar{m.registry}
	m.plugin = r.counters("istio_cni_plugin_requests_total", "Requests of the CNI plugin.", "response_code")
	m.reconcile = r.counters("nodeagent_reconcile_events_total", "Pods handled after a change.", "type")
	m.drift = r.counters("ambientlab_cni_drift_total", "Enrolled pods that were found without their rules or their proxy.", "kind", "outcome")
	m.installs = r.counters("istio_cni_installs_total", "Times that the CNI plugin was installed or repaired.", "result")
	m.ready = r.gauge("istio_cni_install_ready", "Whether new pods can be enrolled.")
	m.connected = r.gauge("ztunnel_connected", "Ztunnels that are connected.")
	return m
}

// Handler serves the metrics.
func (m *AgentMetrics) Handler() http.Handler { return handler(m.registry) }

// PluginRequest counts an answer to the plugin.
func (m *AgentMetrics) PluginRequest(status int) {
	m.plugin.WithLabelValues(strconv.Itoa(status)).Inc()
}

// Reconciled counts a pod that was handled; kind is "add", "update" or "delete".
func (m *AgentMetrics) Reconciled(kind string) { m.reconcile.WithLabelValues(kind).Inc() }

// Drifted counts a pod that was not as it was left; kind is "rules" or "proxy".
func (m *AgentMetrics) Drifted(kind string, repaired bool) {
	outcome := "failed"
	if repaired {
		outcome = "repaired"
	}
	m.drift.WithLabelValues(kind, outcome).Inc()
}

// Installed counts an installation of the plugin, or a repair.
func (m *AgentMetrics) Installed(ok bool) {
	result := "FAILURE"
	if ok {
		result = "SUCCESS"
	}
	m.installs.WithLabelValues(result).Inc()
}

// SetReady says whether new pods can be enrolled.
func (m *AgentMetrics) SetReady(ok bool) { m.ready.Set(number(ok)) }

// SetConnected says how many ztunnels are connected.
func (m *AgentMetrics) SetConnected(n int) { m.connected.Set(float64(n)) }
