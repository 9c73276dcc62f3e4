// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"log/slog"
	"math"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/ztunnel"
)

// Defaults that upstream's ztunnel has too, so that either binary can be started the same way (reference: A1.2).
const (
	defaultServer = "https://istiod.istio-system.svc:15012"
	defaultRootCA = "./var/run/secrets/istio/root-cert.pem"
	tokenFile     = "./var/run/secrets/tokens/istio-token"
	defaultZDS    = "/var/run/ztunnel/ztunnel.sock"
)

// settings is what the environment says, for the daemon and for the process around it.
type settings struct {
	ztunnel  ztunnel.Config
	logJSON  bool
	logLevel slog.Level
	threads  int // 0: leave it to the runtime
	keyLog   string
}

// parseEnviron reads every variable that is understood, and reports all that are wrong.
func parseEnviron(environ []string, cpus int) (settings, error) {
	e := newEnv(environ)
	s := settings{logLevel: level(e), threads: threads(e, cpus), keyLog: e.text("SSLKEYLOGFILE", "")}
	c := &s.ztunnel
	c.Pod = ztunnel.Pod{Name: e.text("POD_NAME", ""), Namespace: e.text("POD_NAMESPACE", ""), ServiceAccount: e.text("SERVICE_ACCOUNT", ""), IP: e.addr("INSTANCE_IP")}
	c.Node = e.text("NODE_NAME", "")
	c.Network = e.text("NETWORK", "")
	c.ClusterID = e.text("CLUSTER_ID", "Kubernetes")
	c.ClusterDomain = e.text("CLUSTER_DOMAIN", "cluster.local")
	c.ZDSPath = e.text("INPOD_UDS", defaultZDS)
	c.IPv6 = e.flag("IPV6_ENABLED", true)
	c.ReusePort = e.flag("INPOD_PORT_REUSE", true)
	c.Mark = uint32(e.number("PACKET_MARK", uint64(mesh.MarkProxy), 1, math.MaxUint32))
	c.PreserveSource = sourceMode(e)
	// Application tunnels themselves are refused until there are waypoints; the setting is upstream's, so it is understood.
	c.LocalhostAppTunnel = e.flag("LOCALHOST_APP_TUNNEL", true)
	c.ResponseBaggage = e.flag("ENABLE_RESPONSE_BAGGAGE", true)
	c.LogPolicies = e.flag("AUTHZ_POLICY_INFO_LOGGING", false)
	switch f := e.text("LOG_FORMAT", "plain"); f {
	case "json":
		s.logJSON = true
	case "", "plain", "text":
	default:
		e.bad("LOG_FORMAT", "unknown format; use plain or json")
	}
	mode(e, c)
	control(e, c)
	transport(e, c)
	names(e, c)
	timers(e, c)
	refuse(e)
	return s, e.err()
}

func mode(e *env, c *ztunnel.Config) {
	switch m := strings.ToLower(e.text("PROXY_MODE", "shared")); m {
	case "shared", "":
		if e.text("PROXY_WORKLOAD_INFO", "") != "" {
			e.bad("PROXY_WORKLOAD_INFO", "only PROXY_MODE=dedicated serves one workload; set that or unset this")
		}
	case "dedicated":
		parts := strings.Split(e.text("PROXY_WORKLOAD_INFO", ""), "/")
		if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
			e.bad("PROXY_WORKLOAD_INFO", "PROXY_MODE=dedicated needs namespace/name/service-account here")
			return
		}
		c.Dedicated = &ztunnel.Info{Namespace: parts[0], Name: parts[1], ServiceAccount: parts[2]}
	default:
		e.bad("PROXY_MODE", "unknown mode; use shared or dedicated")
	}
}

// control reads where configuration and certificates come from.
func control(e *env, c *ztunnel.Config) {
	c.Local = ztunnel.Local{Inline: []byte(e.text("LOCAL_XDS", "")), Path: e.text("LOCAL_XDS_PATH", "")}
	if len(c.Local.Inline) > 0 && c.Local.Path != "" {
		e.bad("LOCAL_XDS_PATH", "LOCAL_XDS is set too; unset one of them")
	}
	// With a local document nobody is asked unless an address says so.
	local := len(c.Local.Inline) > 0 || c.Local.Path != ""
	def := defaultServer
	if local {
		def = ""
	}
	c.XDS = ztunnel.XDS{
		Address:    e.server("XDS_ADDRESS", def),
		ServerName: e.text("ALT_XDS_HOSTNAME", ""),
		RootCAFile: e.text("XDS_ROOT_CA", defaultRootCA),
		TokenFile:  tokenFile,
		Headers:    e.headers("XDS_HEADER_"),
		Metadata:   metadata(e),
	}
	if c.XDS.Address == "" && !local {
		e.bad("XDS_ADDRESS", "nowhere to read configuration from; set this, LOCAL_XDS_PATH or LOCAL_XDS")
	}
	c.CA = ztunnel.CA{
		ServerName: e.text("ALT_CA_HOSTNAME", ""),
		RootCAFile: e.text("CA_ROOT_CA", defaultRootCA),
		TokenFile:  tokenFile,
		Headers:    e.headers("CA_HEADER_"),
		TTL:        e.duration("SECRET_TTL", 24*time.Hour),
		Fake:       e.flag("FAKE_CA", false),
	}
	c.CRLPath = e.text("CRL_PATH", "")
	switch {
	case !c.CA.Fake:
		c.CA.Address = e.server("CA_ADDRESS", defaultServer)
		if c.CA.Address == "" && e.text("CA_ADDRESS", defaultServer) == "" {
			e.bad("CA_ADDRESS", "nobody to sign certificates; set this, or FAKE_CA=true for a test")
		}
	case e.text("CA_ADDRESS", "") != "":
		e.bad("FAKE_CA", "CA_ADDRESS is set too; the fixed test root protects nothing, so unset FAKE_CA unless this is a test, else CA_ADDRESS")
	}
}

// metadata collects ISTIO_METAJSON_*: each holds a JSON object for the xDS node.
func metadata(e *env) map[string]any {
	out := make(map[string]any)
	for k, v := range e.vars {
		if !strings.HasPrefix(k, "ISTIO_METAJSON_") || v == "" {
			continue
		}
		m := make(map[string]any)
		if err := json.Unmarshal([]byte(v), &m); err != nil {
			e.bad(k, "not a JSON object")
			continue
		}
		for name, value := range m {
			out[name] = value
		}
	}
	return out
}

func transport(e *env, c *ztunnel.Config) {
	const maxWindow = 1<<31 - 1
	c.HBONE = ztunnel.HBONE{
		StreamWindow: uint32(e.number("HTTP2_STREAM_WINDOW_SIZE", 0, 65535, maxWindow)),
		ConnWindow:   uint32(e.number("HTTP2_CONNECTION_WINDOW_SIZE", 0, 65535, maxWindow)),
		FrameSize:    uint32(e.number("HTTP2_FRAME_SIZE", 0, 16384, 1<<24-1)),
		MaxStreams:   uint32(e.number("POOL_MAX_STREAMS_PER_CONNECTION", 0, 1, math.MaxUint16)),
		QueueBudget:  int64(e.number("HBONE_QUEUE_BUDGET", 0, 1<<20, math.MaxInt64)),
		IdleFor:      e.duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute),
	}
	c.TCP = ztunnel.TCP{
		KeepAlive:         e.flag("KEEPALIVE_ENABLED", true),
		KeepAliveIdle:     e.duration("KEEPALIVE_TIME", 180*time.Second),
		KeepAliveInterval: e.duration("KEEPALIVE_INTERVAL", 180*time.Second),
		KeepAliveCount:    int(e.number("KEEPALIVE_RETRIES", 9, 1, 127)),
	}
	if e.flag("USER_TIMEOUT_ENABLED", false) || e.text("USER_TIMEOUT", "") != "" {
		c.TCP.UserTimeout = e.duration("USER_TIMEOUT", c.TCP.KeepAliveIdle+time.Duration(c.TCP.KeepAliveCount)*c.TCP.KeepAliveInterval)
	}
}

// names reads the DNS proxy's settings. As upstream, it runs unless the metadata says otherwise: a listener that nothing is
// redirected to does no harm.
func names(e *env, c *ztunnel.Config) {
	c.DNS = ztunnel.DNS{
		Off:                !e.flag("ISTIO_META_DNS_CAPTURE", true),
		PreferredNamespace: e.text("PREFERED_SERVICE_NAMESPACE", ""), //nolint:misspell // the name is upstream's
		Attempt:            e.duration("DNS_UPSTREAM_TIMEOUT", 2*time.Second),
	}
	if e.text("ISTIO_META_DNS_PROXY_ADDR", "") != "" {
		e.unsupported("ISTIO_META_DNS_PROXY_ADDR", "the DNS proxy listens at port 15053 of each pod's loopback, where the rules lead")
	}
}

// sourceMode is what the kernel allows unless somebody says what is wanted, as upstream has it.
func sourceMode(e *env) ztunnel.SourceMode {
	switch {
	case e.text("ENABLE_ORIG_SRC", "") == "":
		return ztunnel.SourceAuto
	case e.flag("ENABLE_ORIG_SRC", true):
		return ztunnel.SourceKept
	default:
		return ztunnel.SourceOwn
	}
}

// timers reads the waits. All names but those of the drain are ours: upstream has these lengths, but no settings for them.
func timers(e *env, c *ztunnel.Config) {
	c.HBONE.PingInterval = e.duration("HBONE_PING_INTERVAL", 10*time.Second)
	c.HBONE.PingTimeout = e.duration("HBONE_PING_TIMEOUT", 20*time.Second)
	c.Time = ztunnel.Timers{
		Drain:         drainTimeout(e),
		LocalWorkload: e.duration("LOCAL_WORKLOAD_TIMEOUT", 5*time.Second),
		Connect:       e.duration("CONNECT_TIMEOUT", 10*time.Second),
		Retry:         e.duration("PROXY_RETRY_INTERVAL", 5*time.Second),
		Certificate:   e.backoff("CERT_BACKOFF", time.Second, 150*time.Second),
		XDS:           e.backoff("XDS_BACKOFF", 10*time.Millisecond, 15*time.Second),
		ZDS:           e.backoff("ZDS_BACKOFF", 10*time.Millisecond, 15*time.Second),
	}
}

// drainTimeout leaves a margin below Kubernetes' grace period, after which the process is killed (A1.10).
func drainTimeout(e *env) time.Duration {
	if e.text("CONNECTION_TERMINATION_DEADLINE", "") != "" {
		return e.duration("CONNECTION_TERMINATION_DEADLINE", 5*time.Second)
	}
	grace := e.number("TERMINATION_GRACE_PERIOD_SECONDS", 0, 0, 24*3600)
	switch {
	case grace > 10:
		grace -= 5
	case grace > 1:
		grace--
	case grace == 0:
		grace = 5
	}
	return time.Duration(grace) * time.Second
}

// refuse names the settings of upstream's that promise something not built here: silence would be a broken promise.
func refuse(e *env) {
	if e.flag("TLS12_ENABLED", false) {
		e.unsupported("TLS12_ENABLED", "only TLS 1.3 is spoken")
	}
	if e.text("COMPLIANCE_POLICY", "") != "" {
		e.unsupported("COMPLIANCE_POLICY", "no restricted profile of TLS is offered")
	}
	if e.flag("XDS_ON_DEMAND", false) {
		e.unsupported("XDS_ON_DEMAND", "the whole mesh is subscribed to")
	}
	if e.flag("UNSTABLE_ENABLE_SOCKS5", false) {
		e.unsupported("UNSTABLE_ENABLE_SOCKS5", "there is no SOCKS5 listener")
	}
}

// level reads LOG_LEVEL, or else the first plain level in RUST_LOG ("info", "warn,access=debug").
func level(e *env) slog.Level {
	name, text := "LOG_LEVEL", e.text("LOG_LEVEL", "")
	if text == "" {
		name = "RUST_LOG"
		for _, part := range strings.Split(e.text("RUST_LOG", ""), ",") {
			if part = strings.TrimSpace(part); part != "" && !strings.ContainsRune(part, '=') {
				text = part
				break
			}
		}
	}
	if text == "" {
		return slog.LevelInfo
	}
	l, err := admin.ParseLevel(text)
	if err != nil {
		e.bad(name, "unknown level; use error, warn, info, debug, trace or off")
	}
	return l
}

// threads reads ZTUNNEL_WORKER_THREADS, "N" or "N%" of the CPUs. The default keeps a quarter of a large node, as
// upstream: a proxy that shares a node with its pods should not scale with the node.
func threads(e *env, cpus int) int {
	def := max(2, (cpus+3)/4)
	v := e.text("ZTUNNEL_WORKER_THREADS", "")
	if v == "" {
		return min(def, runtime.GOMAXPROCS(0))
	}
	digits, percent := strings.CutSuffix(v, "%")
	n, err := strconv.ParseUint(digits, 10, 12)
	if err != nil || n == 0 || (percent && n > 100) {
		e.bad("ZTUNNEL_WORKER_THREADS", `neither a count nor a share; write for instance "2" or "25%%"`)
		return def
	}
	if percent {
		return max(1, (cpus*int(n)+99)/100)
	}
	return int(n)
}
