// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/ambientlab/ambientlab/topologies"
)

// labelCluster on a container says to whose external hosts it belongs.
const labelCluster = "dev.ambientlab.cluster"

// startOutside starts the topology's external hosts: containers beside the nodes, on their network, with the addresses that the
// topology gives them. Nodes have a route to each; what pods send there has their node's address, as with any cluster.
func (c *cluster) startOutside(ctx context.Context, hosts []topologies.External) error {
	for i := range hosts {
		if err := c.startHost(ctx, &hosts[i]); err != nil {
			return fmt.Errorf("start external host %s: %w", hosts[i].Name, err)
		}
	}
	return nil
}

func (c *cluster) outsideName(host string) string { return c.name + "-external-" + host }

func (c *cluster) startHost(ctx context.Context, h *topologies.External) error {
	name := c.outsideName(h.Name)
	script := []string{"set -e"}
	copied := func(program string) []string {
		return []string{"cp", filepath.Join(c.bin, program), name + ":/usr/local/bin/" + program}
	}
	for _, a := range h.Addresses {
		script = append(script, fmt.Sprintf("ip addr add %s dev lo", a))
	}
	script = append(script, "exec "+topologies.WorkloadBinary+" "+strings.Join(h.Serve.Args(), " "))
	for _, argv := range [][]string{
		{"create", "--name", name, "--hostname", h.Name, "--network", "kind", "--cap-add", "NET_ADMIN", "--sysctl", "net.ipv6.conf.all.disable_ipv6=0",
			"--label", labelCluster + "=" + c.name, "--env", "POD_NAME=" + h.Name, "--env", "POD_IP=" + h.Addresses[0].String(),
			"--entrypoint", "sh", c.Image, "-c", strings.Join(script, "; ")},
		copied(topologies.WorkloadBinary), copied("capture"),
		{"start", name},
	} {
		if _, err := c.run(ctx, nil, append([]string{c.docker}, argv...)...); err != nil {
			return err
		}
	}
	via, err := c.addresses(ctx, name)
	if err != nil {
		return err
	}
	for _, node := range c.nodes {
		for _, a := range h.Addresses {
			hop := via[0]
			if a.Is6() {
				hop = via[1]
			}
			if _, err := c.output(ctx, node, "ip", "route", "replace", a.String(), "via", hop); err != nil {
				return err
			}
		}
	}
	return nil
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
