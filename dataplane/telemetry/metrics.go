// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// trafficLabels are the labels of every TCP metric, in the order of labelSet.values.
var trafficLabels = []string{
	"reporter",
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster", "source_region", "source_zone",
	"destination_service", "destination_service_namespace", "destination_service_name",
	"destination_workload", "destination_canonical_service", "destination_canonical_revision", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_cluster", "destination_region", "destination_zone",
	"request_protocol", "response_flags", "connection_security_policy",
}

// Metrics counts what a proxy does, under Istio's names. Safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	opened, closed, failed, sent, received *prometheus.CounterVec
	sockets                                *prometheus.GaugeVec

	xdsTerminations, xdsMessages, xdsBytes *prometheus.CounterVec

	proxiesActive, proxiesPending  prometheus.Gauge
	proxiesStarted, proxiesStopped prometheus.Counter

	dns      dnsMetrics
	onDemand *prometheus.CounterVec
	staleCRL prometheus.Gauge

	onScrape func() // set once

	mu     sync.RWMutex // guards the rest
	bySet  map[labelSet]*series
	failBy map[labelSet]prometheus.Counter
	claims map[mesh.Identity][]peerLabels
}

// series are the metrics of one label set.
type series struct{ opened, closed, sent, received prometheus.Counter }

// NewMetrics makes the metrics of one process in a registry of its own.
func NewMetrics(component, version string) *Metrics {
	m := &Metrics{
		registry: newRegistry(component, version),
		bySet:    make(map[labelSet]*series),
		failBy:   make(map[labelSet]prometheus.Counter),
		claims:   make(map[mesh.Identity][]peerLabels),
	}
	r := registrar{m.registry}
	m.opened = r.counters("istio_tcp_connections_opened_total", "TCP connections opened.", trafficLabels...)
	m.closed = r.counters("istio_tcp_connections_closed_total", "TCP connections closed.", trafficLabels...)
	m.failed = r.counters("istio_tcp_connections_failed_total", "TCP connections that were never established (unstable).", trafficLabels...)
	m.received = r.counters("istio_tcp_received_bytes_total", "Bytes received during request.", trafficLabels...)
	m.sent = r.counters("istio_tcp_sent_bytes_total", "Bytes sent during response.", trafficLabels...)
	m.sockets = r.gauges("istio_tcp_sockets_open", "Sockets of applications that are open (unstable).", "reporter")
	m.xdsTerminations = r.counters("istio_xds_connection_terminations_total", "Ended connections to the control plane.", "reason")
	m.xdsMessages = r.counters("istio_xds_message_total", "Messages received from the control plane.", "url")
	m.xdsBytes = r.counters("istio_xds_message_bytes_total", "Bytes received from the control plane.", "url")
	m.proxiesActive = r.gauge("workload_manager_active_proxy_count", "Proxies that run.")
	m.proxiesPending = r.gauge("workload_manager_pending_proxy_count", "Proxies that could not be started yet.")
	m.proxiesStarted = r.counter("workload_manager_proxies_started_total", "Proxies started.")
	m.proxiesStopped = r.counter("workload_manager_proxies_stopped_total", "Proxies stopped.")
	m.dns.register(r)
	m.onDemand = r.counters("istio_on_demand_dns_total", "Connections whose endpoint had to be resolved by name (unstable).", onDemandLabels...)
	m.staleCRL = r.gauge("ambientlab_crl_stale", "1 while the file of revocation lists cannot be read or understood, so that older lists, or none, are in force.")
	return m
}

// OnScrape has update called before each reading, so that what is expensive to keep up to date need not be. It must be set
// before Handler serves.
func (m *Metrics) OnScrape(update func()) { m.onScrape = update }

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	h := handler(m.registry)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m.onScrape != nil {
			m.onScrape()
		}
		h.ServeHTTP(w, r)
	})
}

func newRegistry(component, version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	registrar{r}.gauges("istio_build", "The build that runs; always 1.", "component", "tag").WithLabelValues(component, version).Set(1)
	return r
}

func handler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// registrar makes and registers in one step.
type registrar struct{ *prometheus.Registry }

func (r registrar) counters(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.MustRegister(v)
	return v
}

func (r registrar) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	r.MustRegister(v)
	return v
}

func (r registrar) counter(name, help string) prometheus.Counter {
	v := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	r.MustRegister(v)
	return v
}

func (r registrar) gauge(name, help string) prometheus.Gauge {
	v := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	r.MustRegister(v)
	return v
}

// ConnOpened counts a connection that has been established; the labels are those that r has now, also for ConnProgress and
// ConnClosed.
func (m *Metrics) ConnOpened(r *Record) {
	r.series, r.request, r.response = m.seriesOf(r), 0, 0
	r.series.opened.Inc()
}

// ConnProgress counts what an opened connection has moved so far, as Record.BytesSent and BytesRecv would: each byte once,
// however often it is called. Calls for one record must not overlap, nor follow ConnClosed.
func (m *Metrics) ConnProgress(r *Record, sent, received uint64) {
	if r.series != nil {
		r.count(r.series, sent, received)
	}
}

// ConnClosed counts the end of a connection, and those of its bytes that ConnProgress has not counted.
func (m *Metrics) ConnClosed(r *Record) {
	s := r.series
	if s == nil {
		s = m.seriesOf(r)
	}
	s.closed.Inc()
	r.count(s, r.BytesSent, r.BytesRecv)
}

// count brings the byte counters up to these totals. Their names take the side of the server, whoever reports, so that both
// reporters of one connection agree: received is the request, sent the response.
func (r *Record) count(s *series, sent, received uint64) {
	request, response := sent, received
	if r.Direction == Inbound {
		request, response = response, request
	}
	if request > r.request {
		s.received.Add(float64(request - r.request))
		r.request = request
	}
	if response > r.response {
		s.sent.Add(float64(response - r.response))
		r.response = response
	}
}

// ConnFailed counts a connection that was never established.
func (m *Metrics) ConnFailed(r *Record) {
	set := m.labelsOf(r, r.flags())
	m.mu.RLock()
	c := m.failBy[set]
	m.mu.RUnlock()
	if c == nil {
		c = m.failed.WithLabelValues(set.values()...)
		m.mu.Lock()
		m.failBy[set] = c
		m.mu.Unlock()
	}
	c.Inc()
}

// SocketOpened and SocketClosed keep the number of application sockets.
func (m *Metrics) SocketOpened(d Direction) { m.sockets.WithLabelValues(reporter(d)).Inc() }

// SocketClosed is SocketOpened's counterpart.
func (m *Metrics) SocketClosed(d Direction) { m.sockets.WithLabelValues(reporter(d)).Dec() }

func (m *Metrics) seriesOf(r *Record) *series {
	set := m.labelsOf(r, FlagNone)
	m.mu.RLock()
	s := m.bySet[set]
	m.mu.RUnlock()
	if s != nil {
		return s
	}
	v := set.values()
	m.mu.Lock()
	defer m.mu.Unlock()
	if s = m.bySet[set]; s == nil {
		s = &series{m.opened.WithLabelValues(v...), m.closed.WithLabelValues(v...), m.sent.WithLabelValues(v...), m.received.WithLabelValues(v...)}
		m.bySet[set] = s
	}
	return s
}

// labelSet is the comparable form of the labels, built without allocating.
type labelSet struct {
	direction                              Direction
	src, dst                               peerLabels
	service, serviceNamespace, serviceName string
	flags, security                        string
}

type peerLabels struct {
	workload, canonical, revision, namespace string
	identity                                 mesh.Identity
	app, version, cluster, region, zone      string
}

func (m *Metrics) labelsOf(r *Record, flags string) labelSet {
	set := labelSet{
		direction: r.Direction, src: peerLabelsOf(&r.Src), dst: peerLabelsOf(&r.Dst),
		service: r.Service, serviceNamespace: r.ServiceNamespace, serviceName: r.ServiceName,
		flags: flags, security: r.security(),
	}
	if r.Src.Claimed {
		m.bound(&set.src)
	}
	return set
}

// maxClaims is how many different workloads the holders of one identity may say that they are; more of them are unknown.
// A series is never forgotten, and what a peer says of itself costs it nothing.
const maxClaims = 16

// bound takes back what the peer says of itself, but not what it has proved, if its identity has been given too many names.
func (m *Metrics) bound(l *peerLabels) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.claims[l.identity]
	switch {
	case slices.Contains(known, *l):
	case len(known) < maxClaims:
		m.claims[l.identity] = append(known, *l)
	default:
		*l = peerLabels{namespace: l.namespace, identity: l.identity}
	}
}

func peerLabelsOf(p *Peer) peerLabels {
	l := peerLabels{
		workload: p.Workload, canonical: p.CanonicalName, revision: p.CanonicalRevision, namespace: p.Namespace,
		identity: p.Identity, app: p.App, version: p.Version, cluster: p.Cluster, region: p.Region, zone: p.Zone,
	}
	if l.app == "" {
		l.app = l.canonical
	}
	if l.version == "" {
		l.version = l.revision
	}
	return l
}

func (s *labelSet) values() []string {
	v := make([]string, 0, len(trafficLabels))
	v = append(v, reporter(s.direction))
	v = s.src.append(v)
	v = append(v, s.service, s.serviceNamespace, s.serviceName)
	v = s.dst.append(v)
	return known(append(v, "tcp", s.flags, s.security))
}

// known makes label values of v: of those that are missing too, and of those that are no text.
func known(v []string) []string {
	for i := range v {
		if v[i] == "" {
			v[i] = "unknown"
		}
		v[i] = strings.ToValidUTF8(v[i], "\ufffd") // Prometheus panics at anything else
	}
	return v
}

func (l *peerLabels) append(v []string) []string {
	return append(v, l.workload, l.canonical, l.revision, l.namespace, l.identity.String(), l.app, l.version, l.cluster, l.region, l.zone)
}

func reporter(d Direction) string {
	if d == Inbound {
		return "destination"
	}
	return "source"
}
