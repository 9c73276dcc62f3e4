// SPDX-License-Identifier: Apache-2.0

// Command cni-agent enrols a node's pods in the mesh and releases them (package cni), from objects in a directory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/cni"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	switch {
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "cni-agent:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

type options struct {
	node, objects, statusDir, netnsDir string
	pluginSocket, zdsSocket            string
	ready, metrics, admin              string
	dnsCapture                         bool
	driftInterval                      time.Duration
	exclude                            string
	logFormat, logLevel                string
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("cni-agent", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "name of this node; only its pods are touched")
	fs.StringVar(&o.objects, "objects", "", "directory of Kubernetes objects to watch")
	fs.StringVar(&o.statusDir, "status-dir", "", "directory to write annotations to: status/<owner> in the directory of objects")
	fs.StringVar(&o.netnsDir, "netns-dir", "", "directory with one file per pod, named by its uid, that holds the path of its network namespace")
	fs.StringVar(&o.pluginSocket, "plugin-socket", "/var/run/istio-cni/pluginevent.sock", "where the CNI plugin asks")
	fs.StringVar(&o.zdsSocket, "zds-socket", "/var/run/ztunnel/ztunnel.sock", "where ztunnel connects")
	fs.StringVar(&o.ready, "ready", ":8000", "address of /readyz")
	fs.StringVar(&o.metrics, "metrics", ":15014", "address of /metrics")
	fs.StringVar(&o.admin, "admin", "127.0.0.1:15000", "loopback address of /debug/; empty: none")
	dnsDefault, dnsErr := dnsCaptureDefault()
	fs.BoolVar(&o.dnsCapture, "dns-capture", dnsDefault, "redirect DNS queries too, where a pod's annotation does not say otherwise (AMBIENT_DNS_CAPTURE)")
	fs.DurationVar(&o.driftInterval, "drift-interval", driftInterval(), "how often enrolled pods are compared with what they should be, besides on events; 0: never (DRIFT_INTERVAL)")
	fs.StringVar(&o.exclude, "exclude-namespaces", "kube-system", "comma-separated namespaces whose pods are never enrolled")
	fs.StringVar(&o.logFormat, "log-format", "json", "json or text")
	fs.StringVar(&o.logLevel, "log-level", "info", "error, warn, info, debug, trace or off")
	if err := fs.Parse(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			err = errUsage
		}
		return o, err
	}
	if dnsErr != nil {
		fmt.Fprintln(stderr, "cni-agent:", dnsErr)
		return o, errUsage
	}
	missing := false
	if o.driftInterval < 0 {
		fmt.Fprintln(stderr, "cni-agent: --drift-interval or DRIFT_INTERVAL is no duration of 0 or more")
		missing = true
	}
	for _, f := range [][2]string{{"node", o.node}, {"objects", o.objects}, {"status-dir", o.statusDir}, {"netns-dir", o.netnsDir}} {
		if f[1] == "" {
			fmt.Fprintf(stderr, "cni-agent: --%s is required\n", f[0])
			missing = true
		}
	}
	if missing {
		return o, errUsage
	}
	return o, nil
}

// dnsCaptureDefault is on, as upstream's is since 1.25.
func dnsCaptureDefault() (bool, error) {
	v := os.Getenv("AMBIENT_DNS_CAPTURE")
	if v == "" {
		return true, nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return true, fmt.Errorf("AMBIENT_DNS_CAPTURE=%q: want true or false", v)
	}
	return on, nil
}

// driftInterval is DRIFT_INTERVAL; what is no duration there is refused with the flags.
func driftInterval() time.Duration {
	text, ok := os.LookupEnv("DRIFT_INTERVAL")
	if !ok {
		return 30 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return -1
	}
	return d
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	level, log, err := o.logger(stderr)
	if err != nil {
		return err
	}
	host, err := netns.Current()
	if err != nil {
		return fmt.Errorf("open the node's network namespace: %w", err)
	}
	defer host.Close()
	status, err := cni.NewStatusDir(o.statusDir)
	if err != nil {
		return err
	}
	metrics := telemetry.NewAgentMetrics(version)
	ready := admin.NewReadiness()
	var agent *cni.Agent
	proxies := zds.NewServer(zds.ServerConfig{Path: o.zdsSocket, Snapshot: func() []zds.Entry { return agent.Snapshot() },
		Changed: func() { agent.Suspect() }, Log: log})
	agent = cni.New(cni.Config{
		Node: o.node, Objects: file.New(o.objects, log), Proxies: proxies, Rules: cni.KernelRules{}, Netns: cni.NetnsDir(o.netnsDir),
		Annotator: status, HostNetns: host, ExcludeNamespaces: strings.FieldsFunc(o.exclude, func(r rune) bool { return r == ',' || r == ' ' }),
		Drift:      cni.Drift{Every: o.driftInterval, Watch: capture.Watch, Listening: (*netns.NS).Listening},
		DNSCapture: o.dnsCapture, Readiness: ready, Metrics: metrics, Log: log,
	})
	server := admin.New(admin.Config{
		Name: "cni-agent", Version: version, Readiness: ready, Level: level, Log: log,
		Dump: func() any { return agent.Status() }, Process: admin.Process{Args: args, Environ: os.Environ()},
		Sections: []admin.Section{
			{Name: "config", About: "settings in force", Value: func() any { return o.settings() }, Index: true},
			{Name: "pods", About: "pods of this node that are redirected", Value: func() any { return agent.Status().Pods }, Index: true},
			{Name: "proxies", About: "ztunnels that are connected", Value: func() any { return map[string]int{"connected": proxies.Connected()} }, Index: true},
			{Name: "problems", About: "what is wrong with the objects", Value: func() any { return agent.Status().Problems }, Index: true},
		},
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			metrics.SetConnected(proxies.Connected())
			metrics.Handler().ServeHTTP(w, r)
		}),
	})
	return serve(ctx, o, agent, server)
}

// settings are the options as the debug page shows them.
func (o options) settings() map[string]any {
	return map[string]any{
		"node": o.node, "objects": o.objects, "statusDir": o.statusDir, "netnsDir": o.netnsDir, "pluginSocket": o.pluginSocket,
		"zdsSocket": o.zdsSocket, "dnsCapture": o.dnsCapture, "excludeNamespaces": o.exclude, "logFormat": o.logFormat,
	}
}

func serve(ctx context.Context, o options, agent *cni.Agent, server *admin.Server) error {
	var ls admin.Listeners
	var all []net.Listener
	closeAll := func() {
		for _, l := range all {
			l.Close()
		}
	}
	for _, p := range []struct {
		addr string
		l    *net.Listener
	}{{o.ready, &ls.Readiness}, {o.metrics, &ls.Metrics}, {o.admin, &ls.Admin}} {
		if p.addr == "" {
			continue
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", p.addr)
		if err != nil {
			closeAll()
			return err
		}
		*p.l, all = l, append(all, l)
	}
	plugin, err := cni.ListenPlugin(ctx, o.pluginSocket)
	if err != nil {
		closeAll()
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Run(ctx, ls) })
	g.Go(func() error { return agent.Run(ctx, plugin) })
	return g.Wait()
}

func (o options) logger(w io.Writer) (*slog.LevelVar, *slog.Logger, error) {
	l, err := admin.ParseLevel(o.logLevel)
	if err != nil {
		return nil, nil, err
	}
	level := new(slog.LevelVar)
	level.Set(l)
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: admin.DurationText}
	switch o.logFormat {
	case "json":
		return level, slog.New(slog.NewJSONHandler(w, opts)), nil
	case "text":
		return level, slog.New(slog.NewTextHandler(w, opts)), nil
	default:
		return nil, nil, fmt.Errorf("log format %q: want json or text", o.logFormat)
	}
}
