// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
	"github.com/ambientlab/ambientlab/topologies/nodenet/policy"
)

const (
	// recheck is how often the node is compared with the plan though nothing happened.
	recheck = 30 * time.Second
	// firstRetry doubles up to recheck while the node cannot be made what it should be.
	firstRetry = 200 * time.Millisecond
)

// agent keeps one node's network as the cluster's objects ask for.
type agent struct {
	settings
	log       *slog.Logger
	objects   source.Source
	written   []byte   // the CNI configuration that this process wrote last
	complains []string // what was logged last, so that it is logged once

	links asked // the last good ones
	plain bool  // the underlay's link is without offloads, or may be: an earlier process may have made it so
}

// asked are links, and the annotation that asked for them.
type asked struct {
	nodenet.Links
	annotation string
}

// run returns when ctx ends, or when the objects cannot be watched any longer.
func (a *agent) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.objects.Run(ctx) })
	g.Go(func() error { a.keep(ctx); return nil })
	return g.Wait()
}

// keep reconciles on every change, and again a while after one that failed.
func (a *agent) keep(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.objects.Ready():
	}
	a.log.Info("objects are known", "node", a.node, "podSubnets", a.cluster)
	a.plain = a.wasPlain()
	retry := firstRetry
	for ctx.Err() == nil {
		changed, next := a.objects.Changed(), recheck
		problems, err := a.reconcile(ctx, a.objects.Load())
		if err != nil {
			problems = append(problems, err.Error())
			next, retry = retry, min(2*retry, recheck)
		} else {
			retry = firstRetry
		}
		a.complain(problems)
		wait := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-wait.C:
		}
		wait.Stop()
	}
}

// reconcile makes routes and rules first, and then tells the container runtime that there is a network. Problems are mistakes of
// objects: policies with one are left out, and links that are not understood leave the last good ones in force.
func (a *agent) reconcile(ctx context.Context, o *source.Objects) (problems []string, err error) {
	c, err := config(o.Nodes, a.node, a.cluster)
	if err != nil {
		return nil, err
	}
	annotation := o.Nodes[a.node].Annotations[nodenet.AnnotationLinks]
	if links, err := nodenet.ParseLinks(annotation); err == nil {
		a.links = asked{links, annotation}
	} else {
		problems = append(problems, err.Error())
	}
	for i, p := range c.Peers {
		c.Peers[i].PathMTU = a.links.PathMTU[p.Name]
	}
	if err := a.route(ctx, c); err != nil {
		return problems, err
	}
	more, err := a.enforce(ctx, o, c.Self.PodSubnets)
	problems = append(problems, more...)
	if err == nil {
		err = a.offload(ctx)
	}
	if err == nil {
		err = a.configure(c.Self.PodSubnets)
	}
	return problems, err
}

func (a *agent) route(ctx context.Context, c nodenet.Config) error {
	plan, err := nodenet.NewPlan(c)
	if err != nil {
		return err
	}
	changed, err := nodenet.Apply(ctx, nil, plan)
	if err != nil {
		return err
	}
	if changed {
		a.log.Info("routes and rules written", "peers", len(c.Peers))
	}
	return nil
}

// offload turns the offloads of the underlay's link off, or on again.
func (a *agent) offload(ctx context.Context) (err error) {
	switch {
	case a.links.PlainPackets == a.plain:
	case a.plain:
		err = nodenet.UseOffloads(ctx, nil, nodenet.UnderlayLink)
	default:
		err = nodenet.PlainPackets(ctx, nil, nodenet.UnderlayLink)
	}
	if err == nil {
		a.plain = a.links.PlainPackets
	}
	return err
}

// wasPlain reports whether an earlier process left a CNI configuration for plain packets.
func (a *agent) wasPlain() bool {
	text, err := os.ReadFile(a.conf)
	return err == nil && bytes.Contains(text, []byte(`"plainpackets"`))
}

func (a *agent) enforce(ctx context.Context, o *source.Objects, subnets []netip.Prefix) (problems []string, err error) {
	c := policy.Objects(o)
	c.Node, c.PodSubnets = a.node, subnets
	plan := policy.NewPlan(c)
	changed, err := policy.Apply(ctx, nil, plan)
	if err != nil {
		return nil, err
	}
	if changed {
		a.log.Info("NetworkPolicy rules written", "policies", len(c.Policies))
	}
	for _, p := range plan.Problems {
		problems = append(problems, p.Error())
	}
	return problems, nil
}

func (a *agent) complain(problems []string) {
	slices.Sort(problems)
	if len(problems) > 0 && !slices.Equal(problems, a.complains) {
		a.log.Error("not as the cluster's objects ask for", "problems", problems)
	}
	a.complains = problems
}

// config is what nodenet has to know of the cluster's nodes. Nodes that have no pod subnet or no address yet are
// left out; without this one there is nothing to do.
func config(nodes map[string]*corev1.Node, self string, cluster []netip.Prefix) (nodenet.Config, error) {
	c := nodenet.Config{ClusterSubnets: cluster}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		h, err := host(nodes[name])
		switch {
		case name == self && err != nil:
			return c, err
		case name == self:
			c.Self = h
		case err == nil:
			c.Peers = append(c.Peers, h)
		}
	}
	if c.Self.Name == "" {
		return c, fmt.Errorf("node %s is not in the cluster", self)
	}
	return c, nil
}

func host(n *corev1.Node) (nodenet.Host, error) {
	h := nodenet.Host{Name: n.Name}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		ip, err := netip.ParseAddr(a.Address)
		if err != nil {
			return h, fmt.Errorf("node %s: %w", n.Name, err)
		}
		h.Addresses = append(h.Addresses, ip.Unmap())
	}
	for _, text := range n.Spec.PodCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return h, fmt.Errorf("node %s: %w", n.Name, err)
		}
		h.PodSubnets = append(h.PodSubnets, p.Masked())
	}
	if len(h.Addresses) == 0 || len(h.PodSubnets) == 0 {
		return h, fmt.Errorf("node %s has no address or no pod subnet yet", n.Name)
	}
	return h, nil
}
