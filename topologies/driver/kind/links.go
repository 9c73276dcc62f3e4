// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

// linksOf are what nodenet is to do to nodes' links, by the topology's node; nothing where all is as Ethernet has it. Nodes keep
// their own links, which are as wide as Docker's network: what is wider is refused, all of it at once.
func linksOf(spec *topologies.Spec) (map[string]nodenet.Links, error) {
	links := map[string]nodenet.Links{}
	var errs []error
	nodes := spec.Clusters[0].Nodes
	for _, n := range nodes {
		l := nodenet.Links{PlainPackets: n.PlainPackets, PathMTU: map[string]int{}}
		if n.MTU != topologies.DefaultMTU {
			l.MTU = n.MTU
		}
		for _, p := range nodes {
			mtu := spec.PathMTU(n.Name, p.Name)
			switch {
			case p.Name == n.Name || mtu == topologies.DefaultMTU:
			case mtu < topologies.DefaultMTU:
				l.PathMTU[p.Name] = mtu
			case n.Name < p.Name:
				errs = append(errs, fmt.Errorf("nodes %s and %s: packets of %d do not pass between them, as Docker's network has an MTU of %d: give the topology a link between them of that or less", n.Name, p.Name, mtu, topologies.DefaultMTU))
			}
		}
		if !l.IsZero() {
			links[n.Name] = l
		}
	}
	for _, e := range spec.External {
		if e.MTU != topologies.DefaultMTU {
			errs = append(errs, fmt.Errorf("external host %s: its MTU is that of Docker's network, %d, and not %d", e.Name, topologies.DefaultMTU, e.MTU))
		}
	}
	return links, errors.Join(errs...)
}

// setLinks has nodenet make the links of the cluster's nodes, and of their pods from now on, what a topology asks for, waits until
// it has, and says it in words that no other links have; "" if the topology asks for nothing.
func (c *cluster) setLinks(ctx context.Context, spec *topologies.Spec) (string, error) {
	want, err := linksOf(spec)
	if err != nil || (len(want) == 0 && !c.links) {
		return "", err
	}
	if missing := c.mtuMissing(); missing != "" {
		return "", fmt.Errorf("MTUs: %w: %s", lab.ErrUnsupported, missing)
	}
	if len(want) == 0 {
		return "", c.clearLinks(ctx)
	}
	name := map[string]string{}
	for i, n := range spec.Clusters[0].Nodes {
		name[n.Name] = c.nodes[i]
	}
	by := map[string]nodenet.Links{}
	for node, l := range want {
		peers := map[string]int{}
		for p, mtu := range l.PathMTU {
			peers[name[p]] = mtu
		}
		l.PathMTU = peers
		by[name[node]] = l
	}
	text, err := json.Marshal(want)
	if err != nil {
		return "", err
	}
	return string(text), c.linkNodes(ctx, by)
}

// mtuMissing is why the lab cannot set MTUs; "" if it can.
func (c *cluster) mtuMissing() string {
	if c.ownPodNetwork() {
		return ""
	}
	return notNodenet
}

const notNodenet = "the links of pods are those of the cluster's CNI, which is not nodenet"

// clearLinks undoes setLinks.
func (c *cluster) clearLinks(ctx context.Context) error {
	if !c.links {
		return nil
	}
	return c.linkNodes(ctx, nil)
}

func (c *cluster) linkNodes(ctx context.Context, by map[string]nodenet.Links) error {
	c.links = true // before, so that what half succeeds is undone too
	if err := c.dir.write(c.about()); err != nil {
		return err
	}
	g, each := errgroup.WithContext(ctx)
	for _, node := range c.nodes {
		g.Go(func() error {
			if err := c.linkNode(each, node, by[node]); err != nil {
				return fmt.Errorf("have nodenet change the links of %s: %w", node, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	c.links = len(by) > 0
	return c.dir.write(c.about())
}

func (c *cluster) linkNode(ctx context.Context, node string, l nodenet.Links) error {
	change, script := nodenet.AnnotationLinks+"-", "! "+linksAre+`"links":`
	if !l.IsZero() {
		text, err := json.Marshal(l)
		if err != nil {
			return err
		}
		change = nodenet.AnnotationLinks + "=" + string(text)
		script = linksAre + fmt.Sprintf(`"links": *"%s"`, nodenet.LinksDone(string(text)))
	}
	if _, err := c.kubectl(ctx, "annotate", "--overwrite", "node", node, change); err != nil {
		return err
	}
	if _, err := c.output(ctx, node, "timeout", fmt.Sprint(linksBudget.Seconds()), "sh", "-c", "until "+script+"'; do sleep 0.05; done"); err != nil {
		return fmt.Errorf("annotation %s is not followed within %s (kubectl --namespace=kube-system logs --selector=k8s-app=nodenet): %w", nodenet.AnnotationLinks, linksBudget, err)
	}
	return nil
}

// linksAre, completed by a pattern and a quote, looks at what nodenet writes last.
const linksAre = "cat /etc/cni/net.d/*.conflist | grep -q '"

// linksBudget bounds waiting for nodenet.
const linksBudget = 10 * time.Second
