// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/cni"
	"github.com/ambientlab/ambientlab/dataplane/cni/install"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
	"github.com/ambientlab/ambientlab/dataplane/source/kube/nodeapi"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// parts are what differs between a lab's node and one of Kubernetes.
type parts struct {
	objects   source.Source
	annotator cni.Annotator
	netns     cni.Finder
	open      func(path string) (*netns.NS, error)
	host      *netns.NS // the caller closes it
	sections  []admin.Section
	run       []func(context.Context) error
	hostRules cni.Host                          // nil: there is no kubelet
	departure *departure                        // nil: nothing is installed that could go
	uninstall []func(ctx context.Context) error // when the departure is final
}

// shared is what all parts report to.
type shared struct {
	ready   *admin.Readiness
	metrics *telemetry.AgentMetrics
	log     *slog.Logger
}

func (o *options) parts(s shared) (*parts, error) {
	if o.cluster() {
		return o.onKubernetes(s)
	}
	p := &parts{objects: file.New(o.objects, s.log), netns: cni.NetnsDir(o.netnsDir), open: netns.Open}
	var err error
	if p.annotator, err = cni.NewStatusDir(o.statusDir); err != nil {
		return nil, err
	}
	if p.host, err = netns.Current(); err != nil {
		return nil, fmt.Errorf("open the node's network namespace: %w", err)
	}
	return p, nil
}

func (o *options) onKubernetes(s shared) (*parts, error) {
	cluster, err := kube.Connect(o.kubeconfig, nodeapi.Manager)
	if err != nil {
		return nil, err
	}
	src, err := kube.New(cluster, kube.Options{Kinds: []string{"Namespace", "Node", "Pod"}, Node: o.node, Log: s.log})
	if err != nil {
		return nil, err
	}
	api, err := nodeapi.New(cluster)
	if err != nil {
		return nil, err
	}
	finder := cni.NewProcFinder(o.hostProc)
	annotations := cni.NewAnnotations(o.node, src, api, s.log)
	p := &parts{
		objects: src, annotator: annotations, netns: finder, open: o.openOnHost,
		run: []func(context.Context) error{annotations.Run},
		departure: &departure{log: s.log, wanted: func(ctx context.Context) (bool, error) {
			return api.Wanted(ctx, o.podNamespace, o.daemonSet)
		}},
	}
	p.run = append(p.run, p.departure.Run)
	if o.taint != "" {
		taint := &cni.Taint{Node: o.node, Key: o.taint, Objects: src, Nodes: api, Ready: s.ready, Log: s.log}
		p.run = append(p.run, taint.Run)
	}
	if o.install {
		if err := p.installPlugin(o, cluster, s); err != nil {
			return nil, err
		}
	}
	if p.host, err = netns.Open(filepath.Join(o.hostProc, "1/ns/net")); err != nil {
		return nil, fmt.Errorf("open the node's network namespace (is the host's /proc mounted at %s, and has the agent SYS_PTRACE?): %w", o.hostProc, err)
	}
	if o.probes {
		p.letProbesPass(finder, s)
	}
	return p, nil
}

func (p *parts) letProbesPass(finder *cni.ProcFinder, s shared) {
	host := cni.HostKernel{NS: p.host, Proc: finder}
	p.hostRules = host
	p.uninstall = append(p.uninstall, host.RemoveProbes)
	p.sections = append(p.sections, admin.Section{
		Name: "probes", About: "addresses that kubelet's probes pass to", Index: true, Value: func() any { return probesNow(p.host) },
	})
	s.log.Info("probes get a source address of their own, in an nftables table of its own", "kubeletUID", finder.KubeletUID())
}

func probesNow(host *netns.NS) map[string]any {
	pods, probes, installed, err := capture.ReadProbes(context.Background(), host)
	out := map[string]any{"installed": installed, "probes": probes, "pods": pods}
	if err != nil {
		out["error"] = err.Error()
	}
	return out
}

// openOnHost opens a namespace by the path that it has for the container runtime.
func (o *options) openOnHost(path string) (*netns.NS, error) {
	return netns.OpenUnder(filepath.Join(o.hostProc, "1/root"), o.hostProc, path)
}

func (p *parts) installPlugin(o *options, cluster *kube.Cluster, s shared) error {
	installer, err := install.New(install.Config{
		Plugin: o.pluginBinary, BinDir: o.binDir, ConfDir: o.confDir, KubeconfigName: o.kubeconfigName,
		Entry: install.Entry{
			Type: pluginName, Kubeconfig: filepath.Join(o.confDirOnHost, o.kubeconfigName), PluginSocket: o.pluginSocket, LogSocket: o.logSocket,
			LogLevel: o.pluginLogLevel, ExcludeNamespaces: o.excluded(), AgentPods: o.podNamespace + "/" + o.daemonSet + "-",
		},
		Access: newPluginAccess(cluster, o.podNamespace, o.pluginAccount, s.log).read, Installed: s.metrics.Installed, Readiness: s.ready, Log: s.log,
	})
	if err != nil {
		return err
	}
	p.run = append(p.run, installer.Run)
	p.uninstall = append(p.uninstall, func(context.Context) error { return installer.Uninstall() })
	p.sections = append(p.sections, admin.Section{
		Name: "install", About: "the CNI plugin on this node", Value: func() any { return installer.Status() }, Index: true,
	})
	return nil
}
