// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/kindconfigs/shapes"
	"github.com/ambientlab/ambientlab/topologies"
)

// labelCluster on a container says to whose external hosts it belongs.
const labelCluster = "dev.ambientlab.cluster"

// startOutside starts the topology's external hosts: containers beside the nodes, on their network, with the addresses that the
// topology gives them. Nodes have a route to each; what pods send there has their node's address, as with any cluster.
func (c *cluster) startOutside(ctx context.Context, hosts []topologies.External) error {
	if len(hosts) == 0 {
		return nil
	}
	if err := c.apartFromNodes(ctx, hosts); err != nil {
		return err
	}
	g, each := errgroup.WithContext(ctx)
	routes := make([]string, len(hosts))
	for i := range hosts {
		g.Go(func() (err error) {
			if routes[i], err = c.startHost(each, &hosts[i]); err != nil {
				err = fmt.Errorf("start external host %s: %w", hosts[i].Name, err)
			}
			return err
		})
	}
	g.Go(func() error {
		if err := c.nameHosts(each, hosts); err != nil {
			return fmt.Errorf("have the cluster's DNS know external hosts: %w", err)
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	for _, node := range c.nodes {
		if _, err := c.output(ctx, node, "sh", "-ec", strings.Join(routes, "")); err != nil {
			return fmt.Errorf("route to external hosts: %w", err)
		}
	}
	return nil
}

// apartFromNodes refuses hosts with addresses of Docker's network: a node or a container may have the same, and nodes would look for it
// at the host's.
func (c *cluster) apartFromNodes(ctx context.Context, hosts []topologies.External) error {
	out, err := c.run(ctx, nil, c.docker, "network", "inspect", "kind", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{end}}")
	if err != nil {
		return err
	}
	var subnets []netip.Prefix
	for text := range strings.FieldsSeq(out) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("read the subnets of Docker's network: %w", err)
		}
		subnets = append(subnets, p)
	}
	return within(hosts, subnets)
}

func within(hosts []topologies.External, subnets []netip.Prefix) error {
	var errs []error
	for _, h := range hosts {
		for _, a := range h.Addresses {
			for _, p := range subnets {
				if p.Contains(a) {
					errs = append(errs, fmt.Errorf("external host %s: its address %s is one of Docker's network, %s, as nodes' are: give it another", h.Name, a, p))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// nameHosts gives external hosts their names, <name>.external, in the cluster's DNS: a zone of its own in CoreDNS' configuration, with
// which it starts anew; see awaitNames.
func (c *cluster) nameHosts(ctx context.Context, hosts []topologies.External) error {
	const begin = "# external hosts of the lab\n"
	corefile, err := c.kubectl(ctx, "--namespace=kube-system", "get", "configmap", "coredns", "--output=jsonpath={.data.Corefile}")
	if err != nil {
		return err
	}
	corefile, _, _ = strings.Cut(corefile, begin)
	var zone strings.Builder
	zone.WriteString(strings.TrimRight(corefile, "\n") + "\n" + begin + "external:53 {\n    errors\n    hosts {\n")
	for _, h := range hosts {
		for _, a := range h.Addresses {
			fmt.Fprintf(&zone, "        %s %s.external\n", a, h.Name)
		}
	}
	zone.WriteString("    }\n}\n")
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"Corefile": zone.String()}})
	if err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"patch", "configmap", "coredns", "--type=merge", "--patch=" + string(patch)},
		{"rollout", "restart", "deployment/coredns"},
	} {
		if _, err := c.kubectl(ctx, append([]string{"--namespace=kube-system"}, argv...)...); err != nil {
			return err
		}
	}
	return nil
}

// awaitNames waits until all of the cluster's DNS knows external hosts, if there are any.
func (c *cluster) awaitNames(ctx context.Context, hosts []topologies.External) error {
	if len(hosts) == 0 {
		return nil
	}
	_, err := c.kubectl(ctx, "--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout="+readyBudget.String())
	if err != nil {
		return fmt.Errorf("have the cluster's DNS know external hosts: %w", err)
	}
	return nil
}

func (c *cluster) outsideName(host string) string { return c.name + "-external-" + host }

// startHost returns the commands with which nodes find the host.
func (c *cluster) startHost(ctx context.Context, h *topologies.External) (routes string, err error) {
	name := c.outsideName(h.Name)
	script := []string{"set -e", linkPrograms}
	for _, a := range h.Addresses {
		script = append(script, fmt.Sprintf("ip addr add %s dev lo", a))
	}
	script = append(script, "exec "+topologies.WorkloadBinary+" "+strings.Join(h.Serve.Args(), " "))
	_, err = c.run(ctx, nil, c.docker, "run", "--detach", "--name", name, "--hostname", h.Name, "--network", "kind", "--cap-add", "NET_ADMIN",
		"--sysctl", "net.ipv6.conf.all.disable_ipv6=0", "--volume", c.dir.mount()+":"+shapes.NodeMount+":ro,z", // z: for hosts with SELinux
		"--label", labelCluster+"="+c.name, "--env", "POD_NAME="+h.Name, "--env", "POD_IP="+h.Addresses[0].String(),
		"--entrypoint", "sh", c.Image, "-c", strings.Join(script, "; "))
	if err != nil {
		return "", err
	}
	via, err := c.addresses(ctx, name)
	if err != nil {
		return "", err
	}
	for _, a := range h.Addresses {
		hop := via[0]
		if a.Is6() {
			hop = via[1]
		}
		routes += fmt.Sprintf("ip route replace %s via %s\n", a, hop)
	}
	return routes, nil
}

// addresses are a container's on the nodes' network, IPv4 and IPv6.
func (c *cluster) addresses(ctx context.Context, container string) (both [2]string, err error) {
	out, err := c.run(ctx, nil, c.docker, "inspect", "--format", "{{with index .NetworkSettings.Networks \"kind\"}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", container)
	if err != nil {
		return both, err
	}
	copy(both[:], strings.SplitN(out, " ", 2))
	return both, nil
}

// stopOutside removes the external hosts of this cluster. Routes to them stay, and lead nowhere.
func (c *cluster) stopOutside(ctx context.Context) error {
	out, err := c.run(ctx, nil, c.docker, "ps", "--all", "--quiet", "--filter", "label="+labelCluster+"="+c.name)
	if err != nil || out == "" {
		return err
	}
	_, err = c.run(ctx, nil, append([]string{c.docker, "rm", "--force"}, strings.Fields(out)...)...)
	return err
}
