// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command nodenet is the pod network of a Kubernetes node where no CNI project can be had, and stands in for one: a CNI
// configuration for the node's pod subnets, routes to the pods of other nodes, masquerading of what leaves the cluster, and
// NetworkPolicy. All nodes must be on one link, as kind's are. It runs privileged in the node's network namespace, as a
// DaemonSet, and logs JSON lines. The environment says what is asked of it:
//
//	NODE_NAME    the node that it runs on
//	POD_SUBNETS  the addresses of all pods of the cluster, separated by commas
//	CNI_CONF     where the CNI configuration goes (default /etc/cni/net.d/10-nodenet.conflist)
//
// The annotation nodenet.ambientlab.dev/links of a node asks for links of other sizes: see nodenet.Links.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

func main() {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, log)
	stop()
	if err != nil {
		log.Error("nodenet ended", "err", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger) error {
	s, err := settingsFrom(os.Getenv)
	if err != nil {
		return err
	}
	cluster, err := kube.Connect("", "nodenet")
	if err != nil {
		return err
	}
	objects, err := kube.New(cluster, kube.Options{Kinds: []string{"Namespace", "NetworkPolicy", "Node", "Pod"}, Log: log})
	if err != nil {
		return err
	}
	a := &agent{settings: s, log: log, objects: objects}
	return a.run(ctx)
}

type settings struct {
	node    string
	cluster []netip.Prefix
	conf    string
}

func settingsFrom(env func(string) string) (s settings, err error) {
	s = settings{node: env("NODE_NAME"), conf: cmp.Or(env("CNI_CONF"), "/etc/cni/net.d/10-nodenet.conflist")}
	if s.node == "" {
		err = errors.New("NODE_NAME is not set: give it the node's name (fieldRef spec.nodeName)")
	}
	for _, text := range strings.Split(env("POD_SUBNETS"), ",") {
		p, bad := netip.ParsePrefix(strings.TrimSpace(text))
		if bad != nil {
			err = errors.Join(err, fmt.Errorf("POD_SUBNETS: %w", bad))
		}
		s.cluster = append(s.cluster, p.Masked())
	}
	return s, err
}
