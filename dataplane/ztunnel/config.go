// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Config is everything a ztunnel needs to be told. Durations of zero mean the default that the field names.
type Config struct {
	Version string
	// Process is what the debug page shows of how it was started.
	Process admin.Process

	// Pod is the ztunnel's own pod: the name it gives the control plane. Name and Namespace may be empty without one.
	Pod Pod
	// Node is the name of the node whose pods it serves.
	Node string
	// Network is the network that the node's pods are on; "" is the default network.
	Network string
	// ClusterID and ClusterDomain name the cluster.
	ClusterID, ClusterDomain string

	// Dedicated is the one workload to serve, in the process's own namespace; nil means that pods arrive over ZDS.
	Dedicated *Info
	// ZDSPath is the CNI agent's socket; unused with Dedicated.
	ZDSPath string

	XDS   XDS
	Local Local
	CA    CA
	// CRLPath is a file of revocation lists that is watched; "" means that nobody is revoked.
	CRLPath string

	// IPv6 says whether to listen on and dial IPv6.
	IPv6 bool
	// ReusePort lets an old and a new ztunnel listen side by side.
	ReusePort bool
	// Mark is the SO_MARK of every socket made in a pod; 0 means mesh.MarkProxy.
	Mark uint32
	// PreserveSource makes inbound connections reach the application from their client's address.
	PreserveSource SourceMode
	// LocalhostAppTunnel is for application tunnels, over loopback or not. They come with waypoints: until then a workload
	// that has one is refused either way.
	LocalhostAppTunnel bool
	// ResponseBaggage adds the destination's baggage to an accepted CONNECT.
	ResponseBaggage bool
	// LogPolicies logs, at info, the policy that decided about each inbound connection.
	LogPolicies bool

	HBONE HBONE
	TCP   TCP
	DNS   DNS
	Time  Timers

	// Admin, Metrics and Readiness are where the ztunnel's own HTTP servers listen, in its own namespace; "" means the
	// well-known port, of the admin server on loopback.
	Admin, Metrics, Readiness string

	// Processors is how many processors the process may use at a time; 0 means as many as it uses now.
	Processors int
	// Relax, if set, is called when the process has come to rest after work, to give memory back.
	Relax func()

	// KeyLog, if set, receives the secrets of every HBONE connection in NSS key-log format. It is for labs alone.
	KeyLog io.Writer

	// AccessLog receives one line per connection, as text or JSON.
	AccessLog     io.Writer
	AccessLogJSON bool
	Log           *slog.Logger
	// Level is the level of Log, which the admin server may change.
	Level *slog.LevelVar
}

// SourceMode says whether a client's address is kept.
type SourceMode uint8

// Source modes. The zero value asks the kernel whether it can be kept.
const (
	SourceAuto SourceMode = iota
	SourceKept
	SourceOwn
)

// Pod names the ztunnel's own pod. If it is named with its service account, the ztunnel accepts HBONE for it too, where its
// metrics can be had then.
type Pod struct {
	Name, Namespace, ServiceAccount string
	IP                              netip.Addr
}

// Info is what ZDS says of a pod. It alone decides the pod's identity: addresses are reused, this is not.
type Info struct {
	Name, Namespace, ServiceAccount string
}

// XDS is where configuration comes from. An empty Address means from nowhere but Local.
type XDS struct {
	Address    string // host:port
	ServerName string // what the certificate must say; "" means the host of Address
	RootCAFile string
	TokenFile  string
	Headers    map[string]string
	Metadata   map[string]any // further node metadata, as JSON
}

// Local is configuration without a control plane: a document, or a file that is watched.
type Local struct {
	Inline []byte
	Path   string
}

// CA is where certificates come from. Fake means the fixed test root, which protects nothing.
type CA struct {
	Address    string
	ServerName string
	RootCAFile string
	TokenFile  string
	Headers    map[string]string
	TTL        time.Duration
	Fake       bool
}

// HBONE shapes the HTTP/2 connections; zero fields mean hbone's defaults.
type HBONE struct {
	StreamWindow, ConnWindow, FrameSize, MaxStreams uint32
	QueueBudget                                     int64 // bytes that all connections may queue for slow applications
	IdleFor                                         time.Duration
	PingInterval, PingTimeout                       time.Duration
}

// DNS shapes the DNS proxy in each pod.
type DNS struct {
	// Off leaves port 15053 closed.
	Off bool
	// PreferredNamespace is whose services come next after those of the client's own, where several have one host name.
	PreferredNamespace string
	// Attempt is how long an upstream resolver has for an answer, twice; 2 s.
	Attempt time.Duration
	// ResolvConf names the resolvers for queries whose own destination cannot be found out; "" means /etc/resolv.conf.
	ResolvConf string
}

// TCP shapes sockets.
type TCP struct {
	KeepAlive         bool
	KeepAliveIdle     time.Duration
	KeepAliveInterval time.Duration
	KeepAliveCount    int
	UserTimeout       time.Duration // 0: the kernel's
}

// Timers are the waits that a scenario may want to shorten; zero means the default that is named, or that of the package
// which waits.
type Timers struct {
	Drain         time.Duration // how long connections may go on after a stop; 5 s
	LocalWorkload time.Duration // how long a connection waits for its own workload to be known; 5 s
	Connect       time.Duration // TCP connect; 10 s
	Retry         time.Duration // between attempts to start a proxy that failed; 5 s

	// Between attempts, from the first failure to many.
	Certificate Backoff // 1 s to 150 s
	XDS         Backoff // 10 ms to 15 s
	ZDS         Backoff // 10 ms to 15 s
}

// Backoff bounds a wait that doubles.
type Backoff struct{ Min, Max time.Duration }

func (c *Config) setDefaults() {
	if c.Mark == 0 {
		c.Mark = mesh.MarkProxy
	}
	if c.Processors == 0 {
		c.Processors = runtime.GOMAXPROCS(0)
	}
	orText(&c.ClusterID, "Kubernetes")
	orText(&c.ClusterDomain, "cluster.local")
	orDuration(&c.Time.Drain, 5*time.Second)
	orDuration(&c.Time.LocalWorkload, 5*time.Second)
	orDuration(&c.Time.Connect, 10*time.Second)
	orDuration(&c.Time.Retry, 5*time.Second)
	orText(&c.DNS.ResolvConf, "/etc/resolv.conf")
	orText(&c.Admin, fmt.Sprintf("127.0.0.1:%d", mesh.PortAdmin))
	orText(&c.Metrics, fmt.Sprintf(":%d", mesh.PortMetrics))
	orText(&c.Readiness, fmt.Sprintf(":%d", mesh.PortReadiness))
	if c.AccessLog == nil {
		c.AccessLog = io.Discard
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Level == nil {
		c.Level = new(slog.LevelVar)
	}
}

func orDuration(d *time.Duration, def time.Duration) {
	if *d == 0 {
		*d = def
	}
}

func orText(s *string, def string) {
	if *s == "" {
		*s = def
	}
}
