// SPDX-License-Identifier: Apache-2.0

package shapes

import (
	"embed"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/topologies"
)

//go:embed *.yaml
var files embed.FS

//go:embed cluster.yaml.tmpl
var clusterTemplate string

// Names are those of the shapes that come with the project, sorted.
func Names() []string {
	names, err := fs.Glob(files, "*.yaml")
	if err != nil {
		return nil // the pattern is constant and good
	}
	for i, n := range names {
		names[i] = strings.TrimSuffix(n, ".yaml")
	}
	return names
}

// Source is the text of a shape, as `kind create cluster --config` takes it.
func Source(name string) ([]byte, error) {
	data, err := files.ReadFile(name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("no cluster shape %q; there are %s", name, strings.Join(Names(), ", "))
	}
	return data, nil
}

// Open is a shape to be changed, and given to Cluster.
func Open(name string) (ClusterOptions, error) {
	data, err := Source(name)
	if err != nil {
		return ClusterOptions{}, err
	}
	o, err := parse(data)
	if err != nil {
		return ClusterOptions{}, fmt.Errorf("read cluster shape %s: %w", name, err)
	}
	return o, nil
}

// config is as much of kind's v1alpha4.Cluster as shapes use.
type config struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	Name       string `json:"name"`
	Networking struct {
		IPFamily          topologies.IPFamily `json:"ipFamily"`
		PodSubnet         string              `json:"podSubnet"`
		ServiceSubnet     string              `json:"serviceSubnet"`
		KubeProxyMode     string              `json:"kubeProxyMode"`
		DisableDefaultCNI bool                `json:"disableDefaultCNI"`
	} `json:"networking"`
	Nodes []node `json:"nodes"`
}

type node struct {
	Role  string `json:"role"`
	Image string `json:"image"`
}

func parse(data []byte) (ClusterOptions, error) {
	var c config
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return ClusterOptions{}, err
	}
	if c.Kind != "Cluster" || c.APIVersion != "kind.x-k8s.io/v1alpha4" {
		return ClusterOptions{}, fmt.Errorf("kind %q of %q: want Cluster of kind.x-k8s.io/v1alpha4", c.Kind, c.APIVersion)
	}
	if len(c.Nodes) == 0 {
		c.Nodes = []node{{Role: "control-plane"}} // kind's default
	}
	for i, n := range c.Nodes {
		if (n.Role == "control-plane") != (i == 0) || n.Image != c.Nodes[0].Image {
			return ClusterOptions{}, fmt.Errorf("nodes[%d]: the first node is the control plane, all others are workers, and all have one image", i)
		}
	}
	o := ClusterOptions{
		Name: c.Name, Nodes: len(c.Nodes), Image: c.Nodes[0].Image, IPFamily: c.Networking.IPFamily,
		KubeProxyMode: c.Networking.KubeProxyMode, DisableDefaultCNI: c.Networking.DisableDefaultCNI,
	}
	var err error
	if o.PodSubnets, err = prefixes(c.Networking.PodSubnet); err != nil {
		return ClusterOptions{}, fmt.Errorf("networking.podSubnet: %w", err)
	}
	if o.ServiceSubnets, err = prefixes(c.Networking.ServiceSubnet); err != nil {
		return ClusterOptions{}, fmt.Errorf("networking.serviceSubnet: %w", err)
	}
	return o, o.validate()
}

func prefixes(list string) (out []netip.Prefix, err error) {
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return slices.Clip(out), nil
}
