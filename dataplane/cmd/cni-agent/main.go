// SPDX-License-Identifier: Apache-2.0

// Command cni-agent enrols a node's pods in the mesh and releases them (package cni): on Kubernetes, or from
// objects in a directory.
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
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/cni"
	"github.com/ambientlab/ambientlab/dataplane/netns"
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
	metrics := telemetry.NewAgentMetrics(version)
	ready := admin.NewReadiness()
	p, err := o.parts(shared{ready, metrics, log})
	if err != nil {
		return err
	}
	defer p.host.Close()
	var agent *cni.Agent
	proxies := zds.NewServer(zds.ServerConfig{Path: o.zdsSocket, Snapshot: func() []zds.Entry { return agent.Snapshot() },
		Changed: func() { agent.Suspect() }, Log: log})
	agent = cni.New(cni.Config{
		Node: o.node, Objects: p.objects, Proxies: proxies, Rules: cni.KernelRules{}, Netns: p.netns, OpenNetns: p.open, Host: p.hostRules, ProbeSource: o.probeSource,
		Annotator: p.annotator, HostNetns: p.host, ExcludeNamespaces: o.excluded(),
		Drift:      cni.Drift{Every: o.driftInterval, Watch: capture.Watch, Listening: (*netns.NS).Listening},
		DNSCapture: o.dnsCapture, Readiness: ready, Metrics: metrics, Log: log,
	})
	server := admin.New(admin.Config{
		Name: "cni-agent", Version: version, Readiness: ready, Level: level, Log: log,
		Dump: func() any { return agent.Status() }, Process: admin.Process{Args: args, Environ: os.Environ()},
		Sections: append([]admin.Section{
			{Name: "config", About: "settings in force", Value: func() any { return o.settings() }, Index: true},
			{Name: "pods", About: "pods of this node that are redirected", Value: func() any { return agent.Status().Pods }, Index: true},
			{Name: "proxies", About: "ztunnels that are connected", Value: func() any { return map[string]int{"connected": proxies.Connected()} }, Index: true},
			{Name: "problems", About: "what is wrong with the objects", Value: func() any { return agent.Status().Problems }, Index: true},
		}, p.sections...),
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			metrics.SetConnected(proxies.Connected())
			metrics.Handler().ServeHTTP(w, r)
		}),
	})
	if err := serve(ctx, &o, p, agent, server, log); err != nil {
		return err
	}
	return p.depart(ctx)
}

// depart removes what was installed if nobody comes after this agent.
func (p *parts) depart(ctx context.Context) error {
	if p.departure == nil || !p.departure.final(ctx) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), departureTimeout)
	defer cancel()
	var errs []error
	for _, undo := range p.uninstall {
		errs = append(errs, undo(ctx))
	}
	return errors.Join(errs...)
}

func serve(ctx context.Context, o *options, p *parts, agent *cni.Agent, server *admin.Server, log *slog.Logger) error {
	var ls admin.Listeners
	var all []net.Listener
	closeAll := func() {
		for _, l := range all {
			l.Close()
		}
	}
	for _, on := range []struct {
		addr string
		l    *net.Listener
	}{{o.ready, &ls.Readiness}, {o.metrics, &ls.Metrics}, {o.admin, &ls.Admin}} {
		if on.addr == "" {
			continue
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", on.addr)
		if err != nil {
			closeAll()
			return err
		}
		*on.l, all = l, append(all, l)
	}
	plugin, err := cni.ListenPlugin(ctx, o.pluginSocket)
	if err != nil {
		closeAll()
		return err
	}
	if o.logSocket != "" {
		logs, err := cni.ListenPlugin(ctx, o.logSocket)
		if err != nil {
			closeAll()
			plugin.Close()
			return err
		}
		p.run = append(p.run, func(ctx context.Context) error { return cni.ServePluginLog(ctx, logs, log) })
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Run(ctx, ls) })
	g.Go(func() error { return agent.Run(ctx, plugin) })
	for _, run := range p.run {
		g.Go(func() error { return run(ctx) })
	}
	return g.Wait()
}
