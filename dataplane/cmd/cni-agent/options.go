// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// pluginName is the plugin's program, and its type in a network configuration.
const pluginName = "ambient-cni"

var errUsage = errors.New("usage")

//go:embed usage.txt
var usage string

type options struct {
	node, objects, statusDir, netnsDir string
	kubeconfig                         string
	inCluster                          bool
	podNamespace, daemonSet, hostProc  string
	install, probes                    bool
	pluginBinary, pluginLogLevel       string
	binDir, confDir, confDirOnHost     string
	kubeconfigName, taint              string
	pluginAccount                      string
	pluginSocket, logSocket, zdsSocket string
	ready, metrics, admin              string
	dnsCapture                         bool
	driftInterval                      time.Duration
	exclude                            string
	probeV4, probeV6                   string
	probeSource                        capture.ProbeSource // of the two before, by validate
	logFormat, logLevel                string
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("cni-agent", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "Usage of cni-agent: enrol this node's pods in the mesh, until SIGTERM.")
		fs.PrintDefaults()
		fmt.Fprint(stderr, usage)
	}
	o.sources(fs)
	o.installation(fs)
	dnsDefault, dnsErr := dnsCaptureDefault()
	o.behaviour(fs, dnsDefault)
	if err := fs.Parse(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			err = errUsage
		}
		return o, err
	}
	if err := errors.Join(dnsErr, o.validate(fs.Args())); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintln(stderr, "cni-agent:", line)
		}
		return o, errUsage
	}
	return o, nil
}

// sources are the flags that say where pods and their namespaces are found.
func (o *options) sources(fs *flag.FlagSet) {
	fs.StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "`name` of this node; only its pods are touched (NODE_NAME)")
	fs.BoolVar(&o.inCluster, "in-cluster", false, "follow the API server of the cluster that this runs in, as its pod's service account")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that names an API server to follow instead")
	fs.StringVar(&o.objects, "objects", "", "`directory` of Kubernetes objects to watch, in the place of an API server")
	fs.StringVar(&o.statusDir, "status-dir", "", "with --objects: `directory` to write annotations to, status/<owner> in the directory of objects")
	fs.StringVar(&o.netnsDir, "netns-dir", "", "with --objects: `directory` with one file per pod, named by its uid, that holds the path of its network namespace")
	fs.StringVar(&o.hostProc, "host-proc", env("HOST_PROC", "/host/proc"), "with an API server: `directory` where the host's /proc is mounted; pods' namespaces are found in it (HOST_PROC)")
}

// installation are the flags that say what the agent does to its node besides its pods.
func (o *options) installation(fs *flag.FlagSet) {
	fs.BoolVar(&o.install, "install", true, "with an API server: install the CNI plugin on the node and keep it installed")
	fs.StringVar(&o.pluginBinary, "plugin-binary", beside(pluginName), "`file` of the plugin, to be copied to the host")
	fs.StringVar(&o.binDir, "cni-bin-dir", "/host/opt/cni/bin", "`directory` where the host's CNI plugins are mounted")
	fs.StringVar(&o.confDir, "cni-conf-dir", "/host/etc/cni/net.d", "`directory` where the host's CNI configuration is mounted")
	fs.StringVar(&o.confDirOnHost, "cni-conf-dir-on-host", env("CNI_NET_DIR", "/etc/cni/net.d"), "the same `directory` as the host names it (CNI_NET_DIR)")
	fs.StringVar(&o.kubeconfigName, "kubeconfig-name", env("KUBECONFIG_FILENAME", "ZZZ-istio-cni-kubeconfig"), "`name` of the plugin's kubeconfig in that directory (KUBECONFIG_FILENAME)")
	fs.StringVar(&o.pluginAccount, "plugin-account", env("PLUGIN_SERVICE_ACCOUNT", "ambientlab-cni-plugin"), "`name` of the service account whose token the plugin gets, in the agent's namespace (PLUGIN_SERVICE_ACCOUNT)")
	fs.StringVar(&o.pluginLogLevel, "plugin-log-level", "warn", "the plugin's log level: error, warn, info or debug")
	fs.StringVar(&o.podNamespace, "pod-namespace", env("POD_NAMESPACE", "istio-system"), "`namespace` of the agent's own pod (POD_NAMESPACE)")
	fs.StringVar(&o.daemonSet, "daemonset", env("DAEMONSET", "cni-agent"), "`name` of the agent's DaemonSet; when that is gone, the plugin is removed from the node (DAEMONSET)")
	fs.BoolVar(&o.probes, "probe-snat", true, "with an API server: give kubelet's probes a source address that passes capture")
	fs.StringVar(&o.probeV4, "probe-snat-ip", env("HOST_PROBE_SNAT_IP", mesh.ProbeSourceV4.String()), "IPv4 `address` that kubelet's probes get as their source (HOST_PROBE_SNAT_IP)")
	fs.StringVar(&o.probeV6, "probe-snat-ipv6", env("HOST_PROBE_SNAT_IPV6", mesh.ProbeSourceV6.String()), "IPv6 `address` that kubelet's probes get as their source (HOST_PROBE_SNAT_IPV6)")
	fs.StringVar(&o.taint, "taint", "cni.istio.io/not-ready", "`key` of a taint that is taken from the node while the agent is ready; empty: nodes are left alone")
}

func (o *options) behaviour(fs *flag.FlagSet, dnsDefault bool) {
	fs.StringVar(&o.pluginSocket, "plugin-socket", "/var/run/istio-cni/pluginevent.sock", "where the CNI plugin asks")
	fs.StringVar(&o.logSocket, "log-socket", env("LOG_UDS_ADDRESS", "/var/run/istio-cni/log.sock"), "where the CNI plugin sends what it logs, which this log then has; empty: nowhere (LOG_UDS_ADDRESS)")
	fs.StringVar(&o.zdsSocket, "zds-socket", "/var/run/ztunnel/ztunnel.sock", "where ztunnel connects")
	fs.StringVar(&o.ready, "ready", ":8000", "address of /readyz")
	fs.StringVar(&o.metrics, "metrics", ":15014", "address of /metrics")
	fs.StringVar(&o.admin, "admin", "127.0.0.1:15000", "loopback address of /debug/; empty: none")
	fs.BoolVar(&o.dnsCapture, "dns-capture", dnsDefault, "redirect DNS queries too, where a pod's annotation does not say otherwise (AMBIENT_DNS_CAPTURE)")
	fs.DurationVar(&o.driftInterval, "drift-interval", driftInterval(), "how often enrolled pods are compared with what they should be, besides on events; 0: never (DRIFT_INTERVAL)")
	fs.StringVar(&o.exclude, "exclude-namespaces", env("EXCLUDE_NAMESPACES", "kube-system"), "comma-separated namespaces whose pods are never enrolled (EXCLUDE_NAMESPACES)")
	fs.StringVar(&o.logFormat, "log-format", "json", "json or text")
	fs.StringVar(&o.logLevel, "log-level", "info", "error, warn, info, debug, trace or off")
}

// validate reports all mistakes at once.
func (o *options) validate(rest []string) error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(len(rest) > 0, "arguments %q are not understood", rest)
	bad(o.driftInterval < 0, "--drift-interval or DRIFT_INTERVAL is no duration of 0 or more")
	bad(o.node == "", "--node is required")
	var err error
	o.probeSource.V4, err = netip.ParseAddr(o.probeV4)
	bad(err != nil || !o.probeSource.V4.Is4(), "--probe-snat-ip or HOST_PROBE_SNAT_IP: %q is no IPv4 address", o.probeV4)
	o.probeSource.V6, err = netip.ParseAddr(o.probeV6)
	bad(err != nil || !o.probeSource.V6.Is6() || o.probeSource.V6.Is4In6() || o.probeSource.V6.Zone() != "", "--probe-snat-ipv6 or HOST_PROBE_SNAT_IPV6: %q is no IPv6 address", o.probeV6)
	sources := 0
	for _, given := range []bool{o.objects != "", o.kubeconfig != "", o.inCluster} {
		if given {
			sources++
		}
	}
	bad(sources == 0, "--objects is required (or --in-cluster, or --kubeconfig)")
	bad(sources > 1, "--objects, --kubeconfig and --in-cluster exclude each other")
	for _, f := range [][2]string{{"status-dir", o.statusDir}, {"netns-dir", o.netnsDir}} {
		bad(!o.cluster() && f[1] == "", "--%s is required", f[0])
		bad(o.cluster() && f[1] != "", "--%s is for --objects: an API server has annotations, and a node /proc", f[0])
	}
	bad(o.cluster() && (o.podNamespace == "" || o.daemonSet == ""), "--pod-namespace and --daemonset are required")
	return errors.Join(errs...)
}

// cluster reports whether objects come from an API server.
func (o *options) cluster() bool { return o.kubeconfig != "" || o.inCluster }

func (o *options) excluded() []string {
	return strings.FieldsFunc(o.exclude, func(r rune) bool { return r == ',' || r == ' ' })
}

// settings are the options as the debug page shows them.
func (o *options) settings() map[string]any {
	out := map[string]any{
		"node": o.node, "pluginSocket": o.pluginSocket, "logSocket": o.logSocket, "zdsSocket": o.zdsSocket, "dnsCapture": o.dnsCapture,
		"excludeNamespaces": o.exclude, "logFormat": o.logFormat,
	}
	more := map[string]any{"objects": o.objects, "statusDir": o.statusDir, "netnsDir": o.netnsDir}
	if o.cluster() {
		more = map[string]any{
			"kubeconfig": o.kubeconfig, "hostProc": o.hostProc, "podNamespace": o.podNamespace, "daemonSet": o.daemonSet, "install": o.install,
			"cniBinDir": o.binDir, "cniConfDir": o.confDir, "cniConfDirOnHost": o.confDirOnHost, "probeSNAT": o.probes, "probeSNATIP": o.probeV4, "probeSNATIPv6": o.probeV6, "taint": o.taint,
		}
	}
	for k, v := range more {
		out[k] = v
	}
	return out
}

func env(name, otherwise string) string { return cmp.Or(os.Getenv(name), otherwise) }

// beside is the path of a file in the directory of this program.
func beside(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
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

func (o *options) logger(w io.Writer) (*slog.LevelVar, *slog.Logger, error) {
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
