// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/ambientlab/ambientlab/dataplane/cni"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
	"github.com/ambientlab/ambientlab/dataplane/source/kube/nodeapi"
)

// parts are what differs between a lab's node and one of Kubernetes.
type parts struct {
	objects   source.Source
	annotator cni.Annotator
	netns     cni.Finder
	open      func(path string) (*netns.NS, error)
	host      *netns.NS // the caller closes it
	run       []func(context.Context) error
}

func (o *options) parts(log *slog.Logger) (*parts, error) {
	if o.cluster() {
		return o.onKubernetes(log)
	}
	p := &parts{objects: file.New(o.objects, log), netns: cni.NetnsDir(o.netnsDir), open: netns.Open}
	var err error
	if p.annotator, err = cni.NewStatusDir(o.statusDir); err != nil {
		return nil, err
	}
	if p.host, err = netns.Current(); err != nil {
		return nil, fmt.Errorf("open the node's network namespace: %w", err)
	}
	return p, nil
}

func (o *options) onKubernetes(log *slog.Logger) (*parts, error) {
	cluster, err := kube.Connect(o.kubeconfig, nodeapi.Manager)
	if err != nil {
		return nil, err
	}
	src, err := kube.New(cluster, kube.Options{Kinds: []string{"Namespace", "Node", "Pod"}, Node: o.node, Log: log})
	if err != nil {
		return nil, err
	}
	api, err := nodeapi.New(cluster)
	if err != nil {
		return nil, err
	}
	annotations := cni.NewAnnotations(o.node, src, api, log)
	init := filepath.Join(o.hostProc, "1")
	p := &parts{
		objects: src, annotator: annotations, netns: cni.NewProcFinder(o.hostProc),
		open: func(path string) (*netns.NS, error) {
			return netns.OpenUnder(filepath.Join(init, "root"), o.hostProc, path)
		},
		run: []func(context.Context) error{annotations.Run},
	}
	if p.host, err = netns.Open(filepath.Join(init, "ns/net")); err != nil {
		return nil, fmt.Errorf("open the node's network namespace (is the host's /proc mounted at %s, and has the agent SYS_PTRACE?): %w", o.hostProc, err)
	}
	return p, nil
}
