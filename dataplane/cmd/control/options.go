// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/control/cluster"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

type options struct {
	control.Settings
	objects, caDir, jwks, issuer string
	kubeconfig, holder           string
	inCluster                    bool
	listen, http, ready          string
	rootOut, statusDir           string
	certTTL                      time.Duration
	keyLog                       string
	trusted, serving             list
	check                        bool
	logLevel                     slog.Level
	logFormat                    string
	args                         []string // as they were given
}

// list is a flag of comma-separated values.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	*l = nil
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v != "" {
			*l = append(*l, v)
		}
	}
	return nil
}

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{trusted: list{"istio-system/ztunnel"}, args: args}
	fs := flag.NewFlagSet("control", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.objects, "objects", "", "`directory` of Kubernetes objects to read and watch")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that names an API server to read objects from instead")
	fs.BoolVar(&o.inCluster, "in-cluster", false, "read objects from the API server of the cluster that this runs in, as its pod's service account")
	fs.StringVar(&o.holder, "holder", holder(), "`name` of this replica, of no other (POD_NAME); the one that holds a Lease writes statuses and roots")
	fs.StringVar(&o.caDir, "ca-dir", "", "`directory` of the authority's key and roots, made if it is not there; with an API server the default is Secret "+cluster.SecretName+" of the root namespace")
	fs.StringVar(&o.jwks, "jwks", "", "JSON Web Key Set `file` that service-account tokens are verified with; with an API server the default is its TokenReview")
	fs.StringVar(&o.issuer, "issuer", "", "issuer that tokens must have; any if empty")
	fs.StringVar(&o.listen, "listen", fmt.Sprintf(":%d", mesh.PortXDS), "`address` for discovery and certificates, over TLS")
	fs.StringVar(&o.http, "http", "127.0.0.1:15014", "`address` for /metrics and /debug/; none if empty")
	fs.StringVar(&o.ready, "ready", ":8080", "`address` for /ready alone; none if empty")
	fs.StringVar(&o.TrustDomain, "trust-domain", mesh.DefaultTrustDomain, "trust domain of all identities")
	fs.StringVar(&o.ClusterID, "cluster-id", "Kubernetes", "name of the cluster")
	fs.StringVar(&o.Domain, "cluster-domain", "cluster.local", "DNS domain of services")
	fs.StringVar(&o.Network, "network", "", "network of the cluster's addresses")
	fs.StringVar(&o.RootNamespace, "root-namespace", "istio-system", "`namespace` whose policies hold for the whole mesh")
	automatic, autoErr := autoAllocate()
	fs.BoolVar(&automatic, "auto-allocate", automatic, "give hosts of ServiceEntries without addresses one each (PILOT_ENABLE_IP_AUTOALLOCATE)")
	fs.StringVar(&o.statusDir, "status-dir", "", "`directory` to write conditions of policies to, status/<owner> in the directory of objects; none if empty")
	fs.DurationVar(&o.certTTL, "cert-ttl", 24*time.Hour, "longest life of a workload certificate")
	fs.Var(&o.trusted, "trusted-accounts", "`namespace/account` list of node proxies, which may ask for the identities of pods on their node")
	fs.StringVar(&o.rootOut, "root-cert-out", "", "`file` to write the roots to, for those who verify this server")
	fs.Var(&o.serving, "serving-dns", "DNS names and IP addresses of this server (default istiod's in istio-system, and loopback)")
	fs.StringVar(&o.keyLog, "key-log", "", "`file` to log the secrets of every TLS connection to, in NSS key-log format, for a lab: Wireshark then reads the traffic; none if empty")
	fs.BoolVar(&o.check, "check", false, "read the objects, say what is wrong with them, and end")
	fs.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.StringVar(&o.logFormat, "log-format", "text", "text or json")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, &usageError{err}
	}
	if autoErr != nil {
		return nil, &usageError{autoErr}
	}
	o.NoAutoAllocate = !automatic
	if len(o.serving) == 0 {
		o.serving = list{
			"istiod.istio-system.svc", "istiod.istio-system.svc." + o.Domain, "istiod.istio-system", "istiod",
			"localhost", "127.0.0.1", "::1",
		}
	}
	if err := o.validate(fs.Args()); err != nil {
		return nil, &usageError{err}
	}
	return o, nil
}

// cluster reports whether objects come from an API server.
func (o *options) cluster() bool { return o.kubeconfig != "" || o.inCluster }

// holder is the pod's name, or the host's.
func holder() string {
	name, _ := os.Hostname()
	return cmp.Or(os.Getenv("POD_NAME"), name)
}

// autoAllocate is on, as upstream's is.
func autoAllocate() (bool, error) {
	v := os.Getenv("PILOT_ENABLE_IP_AUTOALLOCATE")
	if v == "" {
		return true, nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return true, fmt.Errorf("PILOT_ENABLE_IP_AUTOALLOCATE=%q: want true or false", v)
	}
	return on, nil
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
	sources := 0
	for _, given := range []bool{o.objects != "", o.kubeconfig != "", o.inCluster} {
		if given {
			sources++
		}
	}
	bad(sources == 0, "--objects is missing (or --kubeconfig, or --in-cluster)")
	bad(sources > 1, "--objects, --kubeconfig and --in-cluster exclude each other")
	bad(!o.check && !o.cluster() && o.caDir == "", "--ca-dir is missing")
	bad(!o.check && !o.cluster() && o.jwks == "", "--jwks is missing")
	bad(o.cluster() && o.statusDir != "", "--status-dir is for --objects: with an API server conditions go into the objects' statuses")
	bad(o.cluster() && o.holder == "", "--holder is missing")
	bad(o.certTTL <= 0, "--cert-ttl %v is not positive", o.certTTL)
	bad(o.logFormat != "text" && o.logFormat != "json", "--log-format %q is neither text nor json", o.logFormat)
	for _, a := range o.trusted {
		ns, sa, ok := strings.Cut(a, "/")
		bad(!ok || ns == "" || sa == "" || strings.Contains(sa, "/"), "--trusted-accounts: %q is not namespace/account", a)
	}
	return errors.Join(errs...)
}

func (o *options) logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: o.logLevel, ReplaceAttr: admin.DurationText}
	if o.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
